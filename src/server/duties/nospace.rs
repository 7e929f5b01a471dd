//! Raises NOSPACE for this member when apply saw a write that did not fit the quota.

use std::sync::Arc;

use crate::server::propose::Proposer;
use crate::server::waiters::Desk;

/// Raises the alarm whenever apply asks for it, until the member stops.
pub async fn run(proposer: Proposer, desk: Arc<Desk>) {
    loop {
        tokio::select! {
            () = desk.until_stopped() => return,
            () = desk.space_wanted.notified() => proposer.raise_no_space().await,
        }
    }
}
