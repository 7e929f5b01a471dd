//! The membership that apply changes: members, ids removed for good, cluster version, a downgrade under way.
//!
//! Pure. Every change is also written down as a pair of a bucket, in etcd's bytes, and collected by `take_pairs`.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use bytes::Bytes;

use crate::common::answer::Answer;
use crate::common::failure::Failure;
use crate::common::ids::MemberId;
use crate::common::version::ETCD_VERSION;
use crate::common::version::Version;
use crate::proto::raftpb::ConfState;
use crate::server::checkpoint::Bucket;
use crate::server::checkpoint::Buckets;
use crate::server::cluster::json;
use crate::server::cluster::member::ChangeContext;
use crate::server::cluster::member::Member;

/// A change of a bucket: `None` deletes.
type Pair = (Bucket, Bytes, Option<Bytes>);

pub const CLUSTER_VERSION_KEY: &[u8] = b"clusterVersion";
const DOWNGRADE_KEY: &[u8] = b"downgrade";
const REMOVED_VALUE: &[u8] = b"removed";

/// What one configuration change asks for, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new voter, or learner when the member says so.
    Add(Member),
    /// A learner becomes a voter and keeps its addresses.
    Promote(MemberId),
    Remove(MemberId),
    /// New peer addresses; nothing else changes.
    Update(MemberId, Vec<String>),
}

/// Whether a downgrade is under way: the target version if so.
type Downgrade = Option<String>;

/// Members and what the log says about all of them.
#[derive(Clone, Debug)]
pub struct Membership {
    members: BTreeMap<MemberId, Member>,
    removed: BTreeSet<MemberId>,
    version: Option<Version>,
    /// What was last said about downgrades; `None` if nothing ever was.
    downgrade: Option<Downgrade>,
    /// Learners allowed at once; must be equal on all members (server.md 6.2).
    learners_max: usize,
    pairs: Vec<Pair>,
}

impl Membership {
    pub fn new(learners_max: usize) -> Membership {
        Membership {
            members: BTreeMap::new(),
            removed: BTreeSet::new(),
            version: None,
            downgrade: None,
            learners_max,
            pairs: Vec::new(),
        }
    }

    /// Reads the three buckets back. A pair that cannot be read is damage.
    pub fn restore(buckets: &Buckets, learners_max: usize) -> Result<Membership, Failure> {
        let mut membership = Membership::new(learners_max);
        for ((bucket, key), value) in buckets {
            let text = String::from_utf8_lossy(key);
            let damaged = || Failure::Refused(format!("bucket {} holds a bad pair at {text:?}", bucket.name()));
            match (bucket, key.as_ref()) {
                (Bucket::Members, _) => {
                    let member = Member::from_json(value).ok_or_else(damaged)?;
                    if MemberId::from_hex(&text) != Some(member.id) {
                        return Err(damaged());
                    }
                    membership.members.insert(member.id, member);
                }
                (Bucket::MembersRemoved, _) => {
                    membership.removed.insert(MemberId::from_hex(&text).ok_or_else(damaged)?);
                }
                (Bucket::Cluster, CLUSTER_VERSION_KEY) => {
                    let version = std::str::from_utf8(value).ok().and_then(Version::parse).ok_or_else(damaged)?;
                    membership.version = Some(checked_version(version)?);
                }
                (Bucket::Cluster, DOWNGRADE_KEY) => {
                    membership.downgrade = Some(downgrade_of_json(value).ok_or_else(damaged)?);
                }
                _ => {}
            }
        }
        Ok(membership)
    }

    /// Would this change be accepted now? etcd's checks, in its order (server.md 6.2).
    pub fn check(&self, change: &Change) -> Result<(), Answer> {
        let id = change.member();
        if self.removed.contains(&id) {
            return Err(Answer::MemberNotFound);
        }
        let known = self.members.get(&id);
        match change {
            Change::Add(_) if known.is_some() => Err(Answer::MemberExists),
            Change::Add(member) => {
                self.check_urls_free(id, &member.peer_urls)?;
                let learners = self.members.values().filter(|member| member.is_learner).count();
                if member.is_learner && learners >= self.learners_max {
                    return Err(Answer::TooManyLearners);
                }
                Ok(())
            }
            _ if known.is_none() => Err(Answer::MemberNotFound),
            Change::Promote(_) if known.is_some_and(|member| !member.is_learner) => Err(Answer::MemberNotLearner),
            // Nobody would be left to decide anything; etcd's members end by a panic here.
            Change::Remove(_) if self.is_last_voter(id) => Err(Answer::NotEnoughStartedMembers),
            Change::Promote(_) | Change::Remove(_) => Ok(()),
            Change::Update(_, urls) => self.check_urls_free(id, urls),
        }
    }

    /// Carries out a change, or leaves everything as it was and says why.
    pub fn change(&mut self, change: Change) -> Result<(), Answer> {
        self.check(&change)?;
        match change {
            Change::Add(member) => self.save(member),
            Change::Promote(id) => self.edit(id, |member| member.is_learner = false),
            Change::Update(id, urls) => self.edit(id, |member| member.peer_urls = urls),
            Change::Remove(id) => {
                self.members.remove(&id);
                self.removed.insert(id);
                self.pairs.push((Bucket::Members, member_key(id), None));
                self.pairs.push((Bucket::MembersRemoved, member_key(id), Some(Bytes::from_static(REMOVED_VALUE))));
            }
        }
        Ok(())
    }

    /// A member published its name and client addresses. False if the member is not known: then nothing changes.
    pub fn set_attributes(&mut self, id: MemberId, name: String, client_urls: Vec<String>) -> bool {
        let known = self.members.contains_key(&id);
        if known {
            self.edit(id, |member| {
                member.name = name;
                member.client_urls = client_urls;
            });
        }
        known
    }

    /// The leader decided the cluster version. A version above our own stops the member (server.md 6.8).
    pub fn set_version(&mut self, version: Version) -> Result<(), Failure> {
        self.version = Some(checked_version(version)?);
        let value = Bytes::from(version.to_string());
        self.pairs.push((Bucket::Cluster, Bytes::from_static(CLUSTER_VERSION_KEY), Some(value)));
        Ok(())
    }

    /// A downgrade begins (with its target) or ends.
    pub fn set_downgrade(&mut self, target: Option<String>) {
        let value = Bytes::from(downgrade_to_json(&target));
        self.pairs.push((Bucket::Cluster, Bytes::from_static(DOWNGRADE_KEY), Some(value)));
        self.downgrade = Some(target);
    }

    /// Members in id order.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    pub fn member(&self, id: MemberId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// Ids that may never come back, ascending.
    pub fn removed(&self) -> impl Iterator<Item = MemberId> {
        self.removed.iter().copied()
    }

    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// Target of a downgrade under way.
    pub fn downgrade(&self) -> Option<&str> {
        self.downgrade.as_ref().and_then(|target| target.as_deref())
    }

    /// The configuration that these members make, ids ascending.
    pub fn conf_state(&self) -> ConfState {
        let ids = |learner: bool| {
            self.members.values().filter(|member| member.is_learner == learner).map(|member| member.id.0).collect()
        };
        ConfState { voters: ids(false), learners: ids(true), ..ConfState::default() }
    }

    /// Changes of pairs since the last call, in order.
    pub fn take_pairs(&mut self) -> Vec<Pair> {
        std::mem::take(&mut self.pairs)
    }

    /// All pairs as they are now.
    pub fn buckets(&self) -> Buckets {
        let mut buckets = Buckets::new();
        for member in self.members.values() {
            buckets.insert((Bucket::Members, member_key(member.id)), Bytes::from(member.to_json()));
        }
        for id in &self.removed {
            buckets.insert((Bucket::MembersRemoved, member_key(*id)), Bytes::from_static(REMOVED_VALUE));
        }
        if let Some(version) = self.version {
            let value = Bytes::from(version.to_string());
            buckets.insert((Bucket::Cluster, Bytes::from_static(CLUSTER_VERSION_KEY)), value);
        }
        if let Some(downgrade) = &self.downgrade {
            let value = Bytes::from(downgrade_to_json(downgrade));
            buckets.insert((Bucket::Cluster, Bytes::from_static(DOWNGRADE_KEY)), value);
        }
        buckets
    }

    fn is_last_voter(&self, id: MemberId) -> bool {
        let mut voters = self.members.values().filter(|member| !member.is_learner);
        voters.next().is_some_and(|voter| voter.id == id) && voters.next().is_none()
    }

    fn check_urls_free(&self, except: MemberId, urls: &[String]) -> Result<(), Answer> {
        let mut others = self.members.values().filter(|member| member.id != except);
        match others.any(|member| member.peer_urls.iter().any(|url| urls.contains(url))) {
            true => Err(Answer::PeerUrlExists),
            false => Ok(()),
        }
    }

    fn edit(&mut self, id: MemberId, edit: impl FnOnce(&mut Member)) {
        if let Some(mut member) = self.members.get(&id).cloned() {
            edit(&mut member);
            self.save(member);
        }
    }

    fn save(&mut self, member: Member) {
        self.pairs.push((Bucket::Members, member_key(member.id), Some(Bytes::from(member.to_json()))));
        self.members.insert(member.id, member);
    }
}

impl Change {
    /// The member the change is about.
    pub fn member(&self) -> MemberId {
        match self {
            Change::Add(member) => member.id,
            Change::Promote(id) | Change::Remove(id) | Change::Update(id, _) => *id,
        }
    }

    /// The context to propose it with; a removal has none.
    pub fn context(&self) -> Bytes {
        let of = |member: Member, is_promote: bool| Bytes::from(ChangeContext { member, is_promote }.to_json());
        match self {
            Change::Add(member) => of(member.clone(), false),
            Change::Promote(id) => of(Member { id: *id, ..Member::default() }, true),
            Change::Remove(_) => Bytes::new(),
            Change::Update(id, urls) => of(Member { id: *id, peer_urls: urls.clone(), ..Member::default() }, false),
        }
    }
}

fn member_key(id: MemberId) -> Bytes {
    Bytes::from(id.to_string())
}

/// A cluster version that this release can serve.
fn checked_version(version: Version) -> Result<Version, Failure> {
    let own = Version::parse(ETCD_VERSION).expect("our own version has three parts");
    if version.line() > own.line() {
        let text = format!("this member speaks etcd {own}, too old for the cluster version {version}");
        return Err(Failure::Refused(text));
    }
    Ok(version)
}

fn downgrade_to_json(target: &Downgrade) -> String {
    let mut out = "{\"target-version\":".to_owned();
    json::push_string(&mut out, target.as_deref().unwrap_or_default());
    out.push_str(&format!(",\"enabled\":{}}}", target.is_some()));
    out
}

/// Reads `{"target-version":"3.6.0","enabled":true}`. `None` if it is not of this shape.
fn downgrade_of_json(value: &[u8]) -> Option<Downgrade> {
    let value: serde_json::Value = serde_json::from_slice(value).ok()?;
    let fields = value.as_object()?;
    let target = fields.get("target-version").and_then(|target| target.as_str()).unwrap_or_default().to_owned();
    let enabled = fields.get("enabled").and_then(|enabled| enabled.as_bool()).unwrap_or_default();
    Some(enabled.then_some(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, port: u16, is_learner: bool) -> Member {
        Member { id: MemberId(id), peer_urls: vec![format!("http://h:{port}")], is_learner, ..Member::default() }
    }

    /// Voters 1 and 2 on ports 1 and 2, learner 3 on port 3, 9 removed.
    fn cluster() -> Membership {
        let mut cluster = Membership::new(1);
        for (id, learner) in [(1, false), (2, false), (3, true), (9, false)] {
            cluster.change(Change::Add(member(id, id as u16, learner))).expect("a fresh member");
        }
        cluster.change(Change::Remove(MemberId(9))).expect("a member");
        cluster
    }

    #[test]
    fn changes_are_checked_as_etcd_does() {
        let check = |change: Change, expected: Result<(), Answer>| {
            let mut cluster = cluster();
            let before = cluster.buckets();
            assert_eq!(cluster.change(change.clone()), expected, "{change:?}");
            assert_eq!(cluster.buckets() == before, expected.is_err(), "{change:?} changes state only if accepted");
        };
        let urls = |port: u16| vec![format!("http://h:{port}")];
        check(Change::Add(member(4, 4, false)), Ok(()));
        check(Change::Add(member(9, 4, false)), Err(Answer::MemberNotFound));
        check(Change::Add(member(1, 4, false)), Err(Answer::MemberExists));
        check(Change::Add(member(4, 2, false)), Err(Answer::PeerUrlExists));
        check(Change::Add(member(4, 3, false)), Err(Answer::PeerUrlExists));
        check(Change::Add(member(4, 4, true)), Err(Answer::TooManyLearners));
        check(Change::Promote(MemberId(3)), Ok(()));
        check(Change::Promote(MemberId(1)), Err(Answer::MemberNotLearner));
        check(Change::Promote(MemberId(5)), Err(Answer::MemberNotFound));
        check(Change::Promote(MemberId(9)), Err(Answer::MemberNotFound));
        check(Change::Remove(MemberId(1)), Ok(()));
        check(Change::Remove(MemberId(5)), Err(Answer::MemberNotFound));
        check(Change::Remove(MemberId(9)), Err(Answer::MemberNotFound));
        check(Change::Update(MemberId(1), urls(8)), Ok(()));
        check(Change::Update(MemberId(1), urls(2)), Err(Answer::PeerUrlExists));
        check(Change::Update(MemberId(5), urls(8)), Err(Answer::MemberNotFound));
    }

    #[test]
    fn the_last_voter_stays() {
        let mut cluster = cluster();
        cluster.change(Change::Remove(MemberId(1))).expect("one of two voters");
        assert_eq!(cluster.change(Change::Remove(MemberId(2))), Err(Answer::NotEnoughStartedMembers));
        cluster.change(Change::Promote(MemberId(3))).expect("a learner");
        cluster.change(Change::Remove(MemberId(2))).expect("one of two voters");
    }

    /// B47, etcd PR 21736: a new address for a learner made it a voter, without anybody asking whether it had caught
    /// up.
    #[test]
    fn b47_update_keeps_the_learner_flag_and_promotion_keeps_the_addresses() {
        let mut cluster = cluster();
        let urls = vec!["http://h:8".to_owned()];
        cluster.change(Change::Update(MemberId(3), urls.clone())).expect("a learner");
        assert!(cluster.member(MemberId(3)).is_some_and(|member| member.is_learner));
        cluster.change(Change::Promote(MemberId(3))).expect("a learner");
        let promoted = cluster.member(MemberId(3)).expect("still there");
        assert_eq!((promoted.is_learner, &promoted.peer_urls), (false, &urls));
    }

    #[test]
    fn conf_state_follows_the_members() {
        let state = cluster().conf_state();
        assert_eq!((state.voters, state.learners), (vec![1, 2], vec![3]));
    }

    #[test]
    fn pairs_restore_the_same_membership() {
        let mut cluster = cluster();
        assert!(cluster.set_attributes(MemberId(1), "m1".to_owned(), vec!["http://c:1".to_owned()]));
        assert!(!cluster.set_attributes(MemberId(9), "gone".to_owned(), Vec::new()));
        cluster.set_version(Version::new(3, 6, 0)).expect("not above our own");
        cluster.set_downgrade(Some("3.5.0".to_owned()));
        let mut written = Buckets::new();
        for (bucket, key, value) in cluster.take_pairs() {
            match value {
                Some(value) => written.insert((bucket, key), value),
                None => written.remove(&(bucket, key)),
            };
        }
        assert_eq!(written, cluster.buckets());
        let key = |bucket: Bucket, key: &'static str| (bucket, Bytes::from_static(key.as_bytes()));
        assert_eq!(written[&key(Bucket::MembersRemoved, "9")], "removed");
        assert_eq!(written[&key(Bucket::Cluster, "clusterVersion")], "3.6.0");
        assert_eq!(written[&key(Bucket::Cluster, "downgrade")], r#"{"target-version":"3.5.0","enabled":true}"#);
        let back = Membership::restore(&written, 1).expect("pairs of our own");
        assert_eq!(back.buckets(), written);
        assert_eq!((back.version(), back.downgrade()), (Some(Version::new(3, 6, 0)), Some("3.5.0")));
        assert_eq!(back.conf_state(), cluster.conf_state());
    }

    #[test]
    fn bad_pairs_are_damage() {
        let check = |bucket: Bucket, key: &'static str, value: &'static str| {
            let buckets = Buckets::from([((bucket, Bytes::from(key)), Bytes::from(value))]);
            assert!(Membership::restore(&buckets, 1).is_err(), "{bucket:?} {key} {value}");
        };
        check(Bucket::Members, "1", "x");
        check(Bucket::Members, "2", r#"{"id":1,"peerURLs":[]}"#);
        check(Bucket::MembersRemoved, "zz", "removed");
        check(Bucket::Cluster, "clusterVersion", "3.7");
        check(Bucket::Cluster, "clusterVersion", "9.0.0");
        check(Bucket::Cluster, "downgrade", "1");
    }

    #[test]
    fn a_cluster_version_above_ours_stops_the_member() {
        let mut cluster = Membership::new(1);
        assert!(cluster.set_version(Version::new(3, 8, 0)).is_err());
        assert!(cluster.set_version(Version::new(3, 7, 0)).is_ok());
    }

    #[test]
    fn contexts_are_etcds() {
        let check = |change: Change, expected: &str| assert_eq!(change.context(), expected.as_bytes());
        check(Change::Add(member(5, 1, true)), r#"{"id":5,"peerURLs":["http://h:1"],"isLearner":true}"#);
        check(Change::Promote(MemberId(5)), r#"{"id":5,"peerURLs":null,"isPromote":true}"#);
        check(Change::Remove(MemberId(5)), "");
        check(Change::Update(MemberId(5), vec!["a".to_owned(), "b".to_owned()]), r#"{"id":5,"peerURLs":["a","b"]}"#);
    }
}
