//! The first entries of a new cluster's log: one AddNode per member, the same bytes on every member (server.md 10.1, 14.3).

use prost::Message as _;
use serde::Serialize;

use crate::common::ids::MemberId;
use crate::proto::raft_numbers as numbers;
use crate::proto::raftpb::ConfChange;
use crate::proto::raftpb::ConfState;
use crate::proto::raftpb::Entry;
use crate::proto::raftpb::HardState;

/// Bootstrap entries belong to term 1; the first election is for term 2.
const BOOTSTRAP_TERM: u64 = 1;

/// etcd's JSON of a member in a bootstrap change; fields in its order.
#[derive(Serialize)]
struct BootstrapMember<'a> {
    id: u64,
    #[serde(rename = "peerURLs")]
    peer_urls: &'a [String],
    name: &'a str,
}

/// Log, hard state and configuration of a new cluster of these (id, name, peer URLs). The entries count as committed.
pub fn bootstrap_entries(members: &[(MemberId, String, Vec<String>)]) -> (Vec<Entry>, HardState, ConfState) {
    let mut members: Vec<_> = members.iter().collect();
    members.sort_by_key(|(id, ..)| *id);
    let entries: Vec<Entry> = (1u64..).zip(&members).map(|(index, member)| bootstrap_entry(index, member)).collect();
    let hard_state = HardState { term: BOOTSTRAP_TERM, vote: 0, commit: entries.len() as u64 };
    let voters = members.iter().map(|(id, ..)| id.0).collect();
    (entries, hard_state, ConfState { voters, ..Default::default() })
}

fn bootstrap_entry(index: u64, (id, name, peer_urls): &(MemberId, String, Vec<String>)) -> Entry {
    let context = serde_json::to_vec(&BootstrapMember { id: id.0, peer_urls, name })
        .expect("a struct of numbers and strings has a JSON form");
    let change = ConfChange { id: 0, r#type: numbers::CONF_ADD_NODE, node_id: id.0, context: context.into() };
    Entry { r#type: numbers::ENTRY_CONF_CHANGE, term: BOOTSTRAP_TERM, index, data: change.encode_to_vec().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_added_in_ascending_order_with_etcds_json() {
        let url = |port: u16| vec![format!("http://127.0.0.1:{port}")];
        let members = [
            (MemberId(0xa50a_fd60_2f55_893f), "m2".to_owned(), url(53002)),
            (MemberId(0x4064_c276_627c_13e8), "m1".to_owned(), url(53001)),
        ];
        let (entries, hard_state, conf_state) = bootstrap_entries(&members);
        assert_eq!(hard_state, HardState { term: 1, vote: 0, commit: 2 });
        assert_eq!(conf_state.voters, [0x4064_c276_627c_13e8, 0xa50a_fd60_2f55_893f]);
        let shape: Vec<_> = entries.iter().map(|entry| (entry.r#type, entry.term, entry.index)).collect();
        assert_eq!(shape, [(1, 1, 1), (1, 1, 2)]);
        let change = ConfChange::decode(entries[0].data.clone()).unwrap();
        assert_eq!((change.id, change.r#type, change.node_id), (0, 0, 0x4064_c276_627c_13e8));
        assert_eq!(
            change.context,
            br#"{"id":4640047329812681704,"peerURLs":["http://127.0.0.1:53001"],"name":"m1"}"#.as_slice()
        );
    }
}
