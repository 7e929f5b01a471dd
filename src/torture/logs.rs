//! What the members' own logs say was committed: the one order that everything else is judged by.
//!
//! The only place here that knows a format of the server's: etcd's write-ahead log, read and never written.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message;

use crate::disk::real::RealDisk;
use crate::proto::raftinternalpb::InternalRaftRequest;
use crate::proto::raftpb::Entry;
use crate::server::raft::wal::committed_entries;
use crate::torture::checker::model::Request;
use crate::torture::values;

/// One committed entry, its client's request if it holds one.
#[derive(Clone, Debug, PartialEq)]
pub struct Logged {
    pub term: u64,
    pub request: Option<Request>,
}

/// The committed log as all members together have it.
#[derive(Clone, Debug, Default)]
pub struct Logs {
    pub entries: BTreeMap<u64, Logged>,
    /// What two logs cannot both say.
    pub conflicts: Vec<String>,
}

impl Logs {
    /// Takes in one log of `member`.
    pub fn read(&mut self, member: &str, dir: &Path) {
        let mut conflicts = Vec::new();
        let read = committed_entries(&RealDisk, dir, |entry| {
            let index = entry.index;
            let logged = logged(entry);
            let known = self.entries.entry(index).or_insert_with(|| logged.clone());
            if *known != logged {
                conflicts
                    .push(format!("{member} committed another entry {index} than others: {logged:?} and {known:?}"));
            }
        });
        match read {
            Ok(rewritten) => conflicts.extend(
                rewritten.iter().map(|index| format!("{member} wrote another entry {index} over a committed one")),
            ),
            Err(failure) => conflicts.push(format!("the log of {member} cannot be read: {failure}")),
        }
        self.conflicts.extend(conflicts);
    }

    /// The first index that no log has although a later one is there.
    pub fn gap(&self) -> Option<u64> {
        let indexes = self.entries.keys().copied();
        (1..).zip(indexes).find(|(expected, index)| expected != index).map(|(expected, _)| expected)
    }

    /// Terms in which somebody led and committed something.
    pub fn terms(&self) -> usize {
        let terms: std::collections::BTreeSet<u64> = self.entries.values().map(|logged| logged.term).collect();
        terms.len()
    }

    pub fn requests(&self) -> Vec<Request> {
        self.entries.values().filter_map(|logged| logged.request.clone()).collect()
    }
}

/// Changes of the configuration, and what members tell each other through the log, change no key: founders even spell
/// them differently.
fn logged(entry: Entry) -> Logged {
    let internal = InternalRaftRequest::decode(entry.data).ok().filter(|_| entry.r#type == 0);
    let request = internal.and_then(|internal| {
        let write = internal.put.map(Request::Put).or(internal.delete_range.map(Request::DeleteRange));
        let lease = internal.lease_grant.map(Request::LeaseGrant).or(internal.lease_revoke.map(Request::LeaseRevoke));
        write.or(internal.txn.map(Request::Txn)).or(internal.compaction.map(Request::Compact)).or(lease)
    });
    let request = request.map(|mut request| {
        values::in_request(&mut request, values::short);
        // Slices of what was read would hold all of it.
        Request::from_bytes(request.to_bytes().into()).unwrap_or(request)
    });
    Logged { term: entry.term, request }
}
