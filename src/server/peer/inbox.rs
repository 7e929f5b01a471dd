//! Raft's inbox, which exists only after the transport: the raft handle is built with the transport in hand.

use std::sync::Arc;
use std::sync::OnceLock;

use crate::common::ids::MemberId;
use crate::proto::raftpb::Message;
use crate::server::raft::state_machine::Inbox;

/// Shared by everything that talks to peers. Until raft is there, messages are dropped: raft repeats what matters.
#[derive(Clone, Default)]
pub(super) struct LateInbox {
    inbox: Arc<OnceLock<Arc<dyn Inbox>>>,
}

impl LateInbox {
    /// Only the first call counts.
    pub fn set(&self, inbox: Arc<dyn Inbox>) {
        if self.inbox.set(inbox).is_err() {
            tracing::warn!("raft inbox was set twice, the second is ignored");
        }
    }

    pub fn step(&self, message: Message) {
        if let Some(inbox) = self.inbox.get() {
            inbox.step(message);
        }
    }

    pub fn report_unreachable(&self, member: MemberId) {
        if let Some(inbox) = self.inbox.get() {
            inbox.report_unreachable(member);
        }
    }

    pub fn report_snapshot(&self, member: MemberId, delivered: bool) {
        if let Some(inbox) = self.inbox.get() {
            inbox.report_snapshot(member, delivered);
        }
    }
}
