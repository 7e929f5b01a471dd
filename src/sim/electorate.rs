//! Who belongs to the cluster, as one reads it off the log: apart from the server's own membership, which it judges.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use prost::Message;
use serde::Deserialize;

use crate::common::ids::MemberId;
use crate::proto::raft_numbers as numbers;
use crate::proto::raftpb::ConfChange;
use crate::proto::raftpb::ConfState;
use crate::proto::raftpb::Entry;

/// etcd's default of `--max-learners`.
const LEARNERS_MAX: usize = 1;

/// The JSON beside a change, as far as it matters here.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Context {
    #[serde(rename = "peerURLs")]
    peer_urls: Option<Vec<String>>,
    #[serde(rename = "isPromote")]
    is_promote: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Elector {
    is_learner: bool,
    urls: Vec<String>,
}

/// Id, whether it is a learner, peer addresses.
pub type Listed = (u64, bool, Vec<String>);

/// Members after some entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Electorate {
    members: BTreeMap<u64, Elector>,
    removed: BTreeSet<u64>,
}

impl Electorate {
    /// The electorate behind an entry, if the entry changes it.
    pub fn after(&self, entry: &Entry) -> Option<Electorate> {
        if entry.r#type != numbers::ENTRY_CONF_CHANGE {
            return None;
        }
        let change = ConfChange::decode(entry.data.clone()).ok()?;
        let context: Context = serde_json::from_slice(&change.context).unwrap_or_default();
        let (id, urls) = (change.node_id, context.peer_urls.unwrap_or_default());
        let mut next = self.clone();
        let known = self.members.get(&id).cloned();
        let taken = self
            .members
            .iter()
            .any(|(other, elector)| *other != id && elector.urls.iter().any(|url| urls.contains(url)));
        let learners = self.members.values().filter(|elector| elector.is_learner).count();
        let promote = context.is_promote == Some(true);
        // A change that is not accepted is an entry like any other: it counts as applied, and nothing follows.
        match (change.r#type, known) {
            _ if self.removed.contains(&id) => return None,
            (numbers::CONF_ADD_NODE, Some(known)) if promote && known.is_learner => {
                next.members.insert(id, Elector { is_learner: false, ..known });
            }
            (numbers::CONF_ADD_NODE, None) if !promote && !taken => {
                next.members.insert(id, Elector { is_learner: false, urls });
            }
            (numbers::CONF_ADD_LEARNER, None) if !promote && !taken && learners < LEARNERS_MAX => {
                next.members.insert(id, Elector { is_learner: true, urls });
            }
            (numbers::CONF_REMOVE_NODE, Some(_)) => {
                next.members.remove(&id);
                next.removed.insert(id);
            }
            (numbers::CONF_UPDATE_NODE, Some(known)) if !taken => {
                next.members.insert(id, Elector { urls, ..known });
            }
            _ => return None,
        }
        Some(next)
    }

    pub fn has(&self, id: MemberId) -> bool {
        self.members.contains_key(&id.0)
    }

    pub fn has_removed(&self, id: MemberId) -> bool {
        self.removed.contains(&id.0)
    }

    pub fn voters(&self) -> Vec<u64> {
        self.ids(false)
    }

    pub fn conf_state(&self) -> ConfState {
        ConfState { voters: self.ids(false), learners: self.ids(true), ..ConfState::default() }
    }

    /// All members, and the removed ids; ascending.
    pub fn listed(&self) -> (Vec<Listed>, Vec<u64>) {
        let members = self.members.iter().map(|(id, elector)| (*id, elector.is_learner, elector.urls.clone()));
        (members.collect(), self.removed.iter().copied().collect())
    }

    fn ids(&self, learner: bool) -> Vec<u64> {
        self.members.iter().filter(|(_, elector)| elector.is_learner == learner).map(|(id, _)| *id).collect()
    }
}
