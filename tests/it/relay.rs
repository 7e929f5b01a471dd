//! A wire that can be cut: a TCP relay between a member's advertised peer address and the one it listens on.

use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cluster::Cluster;
use crate::cluster::Program;
use crate::support::free_port;

/// Leads to one port until it is cut; then it ends every connection, and takes no new one.
pub struct Relay {
    whole: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Relay {
    async fn start(port: u16, target: u16) -> Relay {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a free port");
        let whole = watch::Sender::new(true);
        let task = tokio::spawn(relay(listener, target, whole.clone()));
        Relay { whole, task }
    }

    pub fn cut(&self) {
        self.whole.send_replace(false);
    }

    pub fn mend(&self) {
        self.whole.send_replace(true);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(listener: TcpListener, target: u16, whole: watch::Sender<bool>) {
    while let Ok((mut near, _)) = listener.accept().await {
        let mut state = whole.subscribe();
        if !*state.borrow() {
            continue;
        }
        tokio::spawn(async move {
            let Ok(mut far) = TcpStream::connect(("127.0.0.1", target)).await else { return };
            tokio::select! {
                // How a connection ends is told to its two ends by its end.
                _ = copy_bidirectional(&mut near, &mut far) => {}
                _ = state.wait_for(|whole| !whole) => {}
            }
        });
    }
}

/// Three members of ours, each reached by its peers through a relay of its own.
pub async fn relayed(extra: &[&str]) -> (Cluster, Vec<Relay>) {
    let mut cluster = Cluster::prepare(&[Program::Ours, Program::Ours, Program::Ours], extra);
    let ports = [free_port(), free_port(), free_port()];
    let urls = ports.map(|port| format!("http://127.0.0.1:{port}"));
    let initial: Vec<String> =
        cluster.members.iter().zip(&urls).map(|(member, url)| format!("{}={url}", member.name)).collect();
    let mut relays = Vec::new();
    for ((member, url), port) in cluster.members.iter_mut().zip(&urls).zip(ports) {
        relays.push(Relay::start(port, member.peer_port).await);
        member.set_arg("--initial-advertise-peer-urls", url);
        member.set_arg("--initial-cluster", &initial.join(","));
        member.start();
    }
    cluster.wait_ready().await;
    (cluster, relays)
}
