//! The member as the watch hub sees it, and the hub as apply sees it.

use std::sync::Arc;

use bytes::Bytes;

use crate::common::failure::Failure;
use crate::proto::etcdserverpb::RangeRequest;
use crate::proto::mvccpb::KeyValue;
use crate::server::apply::ports::EventSink;
use crate::server::apply::published::Published;
use crate::server::apply::queue::ApplyHandle;
use crate::server::checkpoint::Record;
use crate::server::mvcc::read;
use crate::server::mvcc::view::ReadError;
use crate::server::mvcc::view::View;
use crate::server::waiters::Desk;
use crate::server::watch::hub::Present;
use crate::server::watch::thread::Member;
use crate::server::watch::thread::WatchHandle;

/// What the hub looks at.
pub struct Watched {
    pub published: Published,
    pub desk: Arc<Desk>,
    pub queue: ApplyHandle,
}

impl Present for Watched {
    fn revision(&self) -> i64 {
        self.published.views().marks().0
    }

    fn compact_revision(&self) -> i64 {
        self.published.views().marks().1
    }

    fn term(&self) -> u64 {
        self.desk.raft_now().status.term
    }

    fn pair_at(&self, key: &Bytes, revision: i64) -> Option<KeyValue> {
        // 0 would mean the newest.
        let request = RangeRequest { key: key.clone(), revision: revision.max(1), ..RangeRequest::default() };
        match read::range_now(&self.published.views(), &request) {
            Ok(mut response) => response.kvs.pop(),
            Err(ReadError::Answer(_)) => None,
            Err(ReadError::Failure(failure)) => {
                self.queue.fail(failure);
                None
            }
        }
    }

    fn recent(&self, first: i64, revisions_max: i64) -> Option<(Vec<Record>, i64)> {
        self.published.views().recent(first, revisions_max)
    }
}

impl Member for Watched {
    fn view(&self) -> Arc<View> {
        self.published.view()
    }

    fn failed(&self, failure: Failure) {
        self.queue.fail(failure);
    }
}

/// The hub behind apply.
pub struct HubSink(pub WatchHandle);

impl EventSink for HubSink {
    fn is_wanted(&self) -> bool {
        self.0.is_wanted()
    }

    fn concerns(&self, key: &[u8]) -> bool {
        self.0.concerns(key)
    }

    fn passed(&self, first: i64, last: i64) {
        self.0.passed(first, last);
    }

    fn records(&self, first: i64, last: i64, records: Vec<Record>) {
        self.0.records(first, last, records);
    }

    fn replaced(&self) {
        self.0.replaced();
    }
}
