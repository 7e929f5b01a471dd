//! How often and how long: every interval of the peer protocol in one place, so that tests can run it faster.

use std::time::Duration;

/// `Default` is what etcd does and expects.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between two attempts to dial a stream.
    pub dial_retry: Duration,
    /// Between link heartbeats on a stream we write; a third of what readers wait for.
    pub link_heartbeat: Duration,
    /// A stream that delivers nothing for so long is dropped.
    pub read_timeout: Duration,
    /// A stream whose reader takes nothing for so long is dropped.
    pub write_timeout: Duration,
    /// Between two probes of the round-trip time.
    pub probe: Duration,
    /// From the start of a connection, or the end of an answer, to a whole request head (reliability.md 4.4). So it also
    /// ends idle connections on the peer port.
    pub header_timeout: Duration,
    /// For one POST with a raft message, answer included; on the receiving side for each piece of a request's body.
    pub post_timeout: Duration,
    /// For one chunk of a snapshot to get on its way, on both sides.
    pub snapshot_stall: Duration,
    /// From the last byte of a snapshot to the answer: the receiver verifies and converts the image meanwhile.
    pub snapshot_answer: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            dial_retry: Duration::from_millis(100),
            link_heartbeat: Duration::from_millis(5000 / 3),
            read_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(5),
            probe: Duration::from_secs(4),
            header_timeout: Duration::from_secs(10),
            post_timeout: Duration::from_secs(10),
            snapshot_stall: Duration::from_secs(30),
            snapshot_answer: Duration::from_secs(300),
        }
    }
}
