//! Keeps a connection to every endpoint that answers and hands them out in turn.
//!
//! One task an endpoint dials, waits for the connection's end and dials again. A caller takes the next open
//! connection, or waits until there is one: a call to a dead cluster ends by its own deadline (ctl.md 2.5).

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::connection;
use super::connection::Connection;
use super::connection::Keepalive;
use super::endpoint::Endpoint;
use crate::common::tls::ClientSide;

/// Pause after the first failed dial; each further failure doubles it.
const REDIAL_MIN: Duration = Duration::from_millis(200);

/// Longest pause between two dials: a member that comes back is used again within this.
const REDIAL_MAX: Duration = Duration::from_secs(5);

/// Connections by endpoint. Dropping it closes them all.
pub(super) struct Balancer {
    seats: Arc<Seats>,
    /// Owned so that the dialling ends with the balancer.
    _dialling: JoinSet<()>,
}

/// What is known of every endpoint.
struct Seats {
    table: Mutex<Table>,
    turn: AtomicUsize,
    changed: watch::Sender<()>,
}

struct Table {
    /// One slot an endpoint, in the order given.
    open: Vec<Option<Connection>>,
    last_error: Option<String>,
}

impl Balancer {
    /// Starts dialling all `endpoints`. Must be called within a tokio runtime.
    pub fn start(endpoints: Vec<Endpoint>, tls: Option<Arc<ClientSide>>, keepalive: Keepalive) -> Balancer {
        let table = Table { open: vec![None; endpoints.len()], last_error: None };
        let (changed, _) = watch::channel(());
        let seats = Arc::new(Seats { table: Mutex::new(table), turn: AtomicUsize::new(0), changed });
        let mut dialling = JoinSet::new();
        for (seat, endpoint) in endpoints.into_iter().enumerate() {
            dialling.spawn(keep_open(seats.clone(), seat, endpoint, tls.clone(), keepalive));
        }
        Balancer { seats, _dialling: dialling }
    }

    /// The next open connection in turn. Waits without end when no endpoint answers.
    pub async fn pick(&self) -> Connection {
        let mut changed = self.seats.changed.subscribe();
        loop {
            if let Some(connection) = self.seats.next() {
                return connection;
            }
            changed.changed().await.expect("the sender lives in self.seats");
        }
    }

    /// Why the latest attempt to connect failed, as etcd's client words it.
    pub fn last_error(&self) -> Option<String> {
        self.seats.table().last_error.clone()
    }
}

impl Seats {
    fn table(&self) -> MutexGuard<'_, Table> {
        // The table is replaced slot by slot, so it is whole even if a holder panicked.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Connection> {
        let table = self.table();
        let seats = table.open.len();
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let in_turn = (0..seats).map(|step| &table.open[(first.wrapping_add(step)) % seats]);
        in_turn.flatten().find(|connection| !connection.is_closed()).cloned()
    }

    fn set(&self, seat: usize, connection: Option<Connection>) {
        self.table().open[seat] = connection;
        self.changed.send_replace(());
    }
}

/// Dials one endpoint for as long as the balancer lives.
async fn keep_open(
    seats: Arc<Seats>,
    seat: usize,
    endpoint: Endpoint,
    tls: Option<Arc<ClientSide>>,
    keepalive: Keepalive,
) {
    let mut pause = REDIAL_MIN;
    loop {
        match connection::open(&endpoint, tls.as_deref(), keepalive).await {
            Ok((connection, ended)) => {
                seats.set(seat, Some(connection.clone()));
                ended.await;
                seats.set(seat, None);
                if connection.has_answered() {
                    pause = REDIAL_MIN;
                    continue;
                }
                seats.table().last_error = Some("error reading server preface: EOF".to_owned());
            }
            Err(error) => seats.table().last_error = Some(error),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(REDIAL_MAX);
    }
}
