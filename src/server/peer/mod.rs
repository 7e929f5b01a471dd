//! etcd's peer protocol: what other members, also real ones, see of us.
//!
//! Every member dials two long-lived streams to every other member and reads from them; the dialed side writes
//! (`stream_out`), the dialing side reads (`stream_in`). What has no stream yet goes out as a POST (`pipeline`), a whole
//! state as a POST of its own (`snapshot_out`, `snapshot_in`). `transport` routes what raft sends, `listener` answers
//! what others ask, and nothing reaches raft that did not pass `validate`. Source: server.md 8.3 and 14.2, peer.md.

pub mod codec;
pub mod dialer;
mod fact_routes;
pub mod facts;
pub mod fetch;
pub mod headers;
mod http_client;
mod inbox;
pub mod lease_client;
pub mod listener;
pub mod metrics;
mod pipeline;
mod probe;
mod remote_urls;
mod reply;
mod routes;
mod snapshot_in;
mod snapshot_out;
mod status;
mod stream_in;
mod stream_out;
pub mod timing;
pub mod transport;
pub mod validate;

pub use fact_routes::PeerHash;
pub use fact_routes::PeerHashHeader;
pub use http_client::PeerUrl;
pub use http_client::RequestError;

#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod port_tests;
#[cfg(test)]
mod test_members;
