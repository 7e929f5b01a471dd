//! What `lock` and `elect` share: a lease that is kept alive meanwhile, and signals that end the wait, not the process.

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

use super::error::CtlError;
use super::print::Report;
use super::session::Session;
use crate::client::CallError;
use crate::client::Client;
use crate::client::concurrency;
use crate::common::concurrency::Place;
use crate::common::concurrency::Queue;
use crate::common::concurrency::Refused;
use crate::common::concurrency::Store;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::etcdserverpb::RangeResponse;
use crate::proto::etcdserverpb::ResponseHeader;

/// What the first renewal may take beyond `--dial-timeout` (ctl.md 2.1).
const FIRST_RENEWAL_EXTRA: Duration = Duration::from_secs(1);

/// A user's turn: waited for, taken, given up.
pub struct Turn<'a> {
    client: &'a Client,
    pub lease: concurrency::Session<'a>,
    pub signals: Signals,
    /// Time to give a place up in.
    patience: Duration,
}

/// SIGINT and SIGTERM, which no longer end the process.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    came: bool,
}

impl Signals {
    /// Returns when one has come, also if that was before.
    pub async fn come(&mut self) {
        if !self.came {
            tokio::select! {
                _ = self.interrupt.recv() => (),
                _ = self.terminate.recv() => (),
            }
            self.came = true;
        }
    }
}

impl<'a> Turn<'a> {
    /// Grants the lease, then traps the signals: until then they end the process.
    pub fn begin(session: &Session<'_>, client: &'a Client, ttl: i64) -> Result<Turn<'a>, CtlError> {
        let duration = |flag: &str| Duration::from_nanos(u64::try_from(session.values.duration(flag)).unwrap_or(0));
        let first = duration("dial-timeout") + FIRST_RENEWAL_EXTRA;
        let lease = session.call(client.session(ttl, first))?;
        let signals = session.wait(async {
            let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
            Ok::<Signals, std::io::Error>(Signals { interrupt, terminate, came: false })
        })?;
        Ok(Turn { client, lease, signals, patience: duration("command-timeout") })
    }

    /// Takes a place and waits until it is the first: it, and the header of the last answer. A signal or an error gives
    /// it up.
    pub async fn take(
        &mut self,
        queue: &Queue,
        entering: impl Future<Output = Result<Place, Refused<CallError>>>,
    ) -> Result<(Place, ResponseHeader), CtlError> {
        let Turn { client, lease, signals, patience } = self;
        let taking = async {
            let place = tokio::select! {
                entered = entering => entered.map_err(refused)?,
                () = signals.come() => return Err(canceled()),
            };
            let waited = tokio::select! {
                waited = queue.wait(*client, &place) => waited.map_err(refused),
                () = signals.come() => Err(canceled()),
            };
            if waited.is_err() {
                // The answer is what went wrong before. Whoever is not heard stays in the queue until the lease ends.
                let _ = tokio::time::timeout(*patience, place.leave(*client)).await;
            }
            Ok((place, waited?))
        };
        lease.during(taking).await
    }

    /// Reads the key of a place.
    pub fn read(&mut self, session: &Session<'_>, place: &Place) -> Result<RangeResponse, CtlError> {
        let request = RangeRequest { key: place.key.clone(), ..RangeRequest::default() };
        session.call(self.lease.during(Store::range(self.client, request)))
    }

    /// Gives a place up.
    pub async fn leave(&mut self, place: &Place) -> Result<(), CtlError> {
        let leaving = tokio::time::timeout(self.patience, place.leave(self.client));
        match self.lease.during(leaving).await {
            Ok(left) => Ok(left.map(drop)?),
            Err(_) => Err(CallError::Deadline { last: None }.into()),
        }
    }

    /// Returns when a signal has come; when the lease ends before, with an error of this text.
    pub async fn hold(&mut self, expired: &str) -> Result<(), CtlError> {
        tokio::select! {
            () = self.signals.come() => Ok(()),
            () = self.lease.ended() => Err(CtlError::failed(expired)),
        }
    }
}

/// A wait that a signal broke off.
fn canceled() -> CtlError {
    CallError::Canceled.into()
}

pub fn refused(error: Refused<CallError>) -> CtlError {
    CtlError::failed(error.to_string())
}

/// Prints a key as `get` does, at once: the command goes on.
pub fn show(session: &mut Session<'_>, response: &RangeResponse) -> Result<(), CtlError> {
    session.report(&Report::Get { response, value_only: false })?;
    session.console.flush()
}
