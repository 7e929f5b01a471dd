//! What clients see: gRPC services and HTTP endpoints on one port.
//!
//! ```text
//!  listener ──▶ sniff ──HTTP/2──▶ interceptors ──▶ kv · lease · watch · cluster · maintenance · health ──▶ Backend
//!                 │                     └▶ lock · election ──▶ kv, watches and leases in process ───────────▶ Backend
//!                 └────HTTP/1.1─▶ http ──▶ /health /livez /readyz /version /metrics /debug/vars
//! ```
//!
//! Nothing here decides what a request means: it checks shape, limits and the caller, and asks the `Backend`.

pub mod authority;
pub mod backend;
pub mod body;
pub mod calls;
pub mod check;
pub mod cluster;
pub mod election;
pub mod ending;
pub mod header;
pub mod health_service;
pub mod http;
pub mod http_health;
pub mod image_stream;
pub mod in_process;
pub mod interceptors;
pub mod kv;
pub mod lease;
pub mod listener;
pub mod lock;
pub mod maintenance;
pub mod methods;
pub mod metrics;
pub mod range_stream;
pub mod server;
pub mod services;
pub mod socket;
pub mod unary;
pub mod watch;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
pub mod unsent;

use tonic::Status;

/// What a gRPC message may have above the limit of a request: room for the rest of the envelope (server.md 0.2).
pub const MESSAGE_OVERHEAD_BYTES: usize = 512 * 1024;

/// The answer of a method that etcd has and this release does not.
pub(crate) fn not_served(method: &str) -> Status {
    Status::unimplemented(format!("quorate: {method} is not served by this release"))
}
