//! Who belongs to a cluster, changed on request: members added, promoted, removed, or replaced by empty ones.
//!
//! ```text
//!  replace   quorum without it? ─▶ stop ─▶ member remove ─▶ wipe ─▶ member add ─▶ start, state existing ─▶ is back?
//!  remove    quorum without it? ─▶ stop ─▶ member remove        (before the stop, where its own vote is needed)
//!  add                                     wipe ─▶ member add ─▶ start, state existing ─▶ is back?
//! ```
//!
//! A member whose data is gone must not come back under its old id: it has forgotten what it voted for and acknowledged (Raft
//! paper, section 5.2). So it leaves the cluster and comes in anew. What it is started with then stands behind its command,
//! where the last flag counts; a learner's entry (`quorate cluster join`) finds that out by itself.
//!
//! One change at a time: the next one sees the cluster that the last one has left.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Deserialize;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::client::CallError;
use crate::client::Client;
use crate::client::Deadline;
use crate::proto::etcdserverpb::Member as Listed;
use crate::proto::etcdserverpb::MemberAddRequest;
use crate::proto::etcdserverpb::MemberListRequest;
use crate::supervisor::control::vocabulary::Action;
use crate::supervisor::control::vocabulary::Handle;
use crate::supervisor::control::vocabulary::NamedResult;
use crate::supervisor::control::vocabulary::Requester;
use crate::supervisor::members::Member;
use crate::supervisor::members::MemberStatus;
use crate::supervisor::targets::Role;

/// What a member may take to say how it is.
const ASK_MAX: Duration = Duration::from_secs(1);
/// One answer of the cluster.
const CALL_MAX: Duration = Duration::from_secs(2);
/// Between two attempts. A cluster wants its members together for five seconds before it changes.
const AGAIN: Duration = Duration::from_millis(250);
/// How long a cluster may take to make a change, and a member to be back.
const PATIENCE: Duration = Duration::from_secs(60);
/// What asking again does not mend (etcd's words).
const FINAL: [&str; 4] = ["too many learner members", "not a learner", "permission denied", "bad member id"];

/// What is to be done with a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "change")]
pub enum Change {
    /// A process that runs no member becomes one, with empty data.
    Add {
        #[serde(default)]
        learner: bool,
    },
    Promote,
    Remove,
    /// It begins anew with empty data, under another id; `delay_ms` lies between its end and its new start.
    Replace {
        #[serde(default)]
        delay_ms: u64,
    },
}

/// What is asked for, as the socket carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterRequest {
    pub names: Vec<String>,
    #[serde(flatten)]
    pub change: Change,
    /// Also where the cluster would be left without a quorum.
    #[serde(default)]
    pub force: bool,
    #[serde(default)]
    pub no_wait: bool,
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

/// A process that may be a member.
#[derive(Clone, Debug)]
pub struct Place {
    pub member: Member,
    /// Its data can be removed.
    pub has_data_dir: bool,
}

/// Changes clusters of these processes.
#[derive(Clone)]
pub struct Roster {
    pub handle: Handle,
    pub places: Arc<Vec<Place>>,
    pub by: Requester,
    /// Whose turn it is.
    pub turn: Arc<Mutex<()>>,
}

/// The cluster of a member, as the others have it.
struct Cluster {
    /// Asks members with a vote, but for the one that it is about.
    client: Client,
    listed: Vec<Listed>,
    /// Who answers and knows a leader.
    up: BTreeSet<u64>,
}

impl Roster {
    /// Does it for one name.
    pub async fn change(self, name: String, change: Change, force: bool) -> NamedResult {
        let _turn = self.turn.lock().await;
        let done = match self.places.iter().find(|place| place.member.process == name) {
            None => Err("it is no member of a cluster".to_owned()),
            Some(place) => match change {
                Change::Add { learner } => self.add(place, learner).await,
                Change::Promote => self.promote(place).await,
                Change::Remove => self.remove(place, force).await,
                Change::Replace { delay_ms } => self.replace(place, delay_ms, force).await,
            },
        };
        let (ok, text) = match done {
            Ok(text) => (true, text),
            Err(text) => (false, text),
        };
        NamedResult { name, ok, text }
    }

    async fn add(&self, place: &Place, learner: bool) -> Result<String, String> {
        let member = &place.member;
        let cluster = self.cluster(member).await?;
        if let Some(listed) = find(&cluster.listed, member) {
            return Err(format!("it is a member already ({:x})", listed.id));
        }
        startable(place)?;
        self.enter(place, &cluster, learner, 0).await
    }

    async fn promote(&self, place: &Place) -> Result<String, String> {
        let cluster = self.cluster(&place.member).await?;
        let listed = known(&cluster, &place.member)?;
        if !listed.is_learner {
            return Err("it has a vote already".to_owned());
        }
        let id = listed.id;
        until(async || {
            let listed = list(&cluster.client).await?;
            match listed.iter().find(|listed| listed.id == id) {
                None => Ok(Some(Err("it is no longer a member".to_owned()))),
                Some(listed) if !listed.is_learner => Ok(Some(Ok(()))),
                Some(_) => {
                    let deadline = Deadline::after(CALL_MAX);
                    cluster.client.member_promote(id, deadline).await.map_err(|error| words(&error))?;
                    Ok(None)
                }
            }
        })
        .await??;
        Ok(format!("{id:x} has a vote now"))
    }

    async fn remove(&self, place: &Place, force: bool) -> Result<String, String> {
        let cluster = self.cluster(&place.member).await?;
        let id = known(&cluster, &place.member)?.id;
        self.leave(place, &cluster, id, force).await?;
        Ok(format!("stopped, and {id:x} removed from the cluster"))
    }

    async fn replace(&self, place: &Place, delay_ms: u64, force: bool) -> Result<String, String> {
        let member = &place.member;
        startable(place)?;
        let alone = self.places.iter().all(|other| other.member.process == member.process);
        if alone || self.is_its_own_cluster(member).await {
            let text = self.start(member, delay_ms, None).await?;
            return Ok(format!("{text}, as a new cluster"));
        }
        let hint = |why: String| format!("{why} (with all members named, the cluster begins anew)");
        let cluster = self.cluster(member).await.map_err(hint)?;
        let (id, learner) = match known(&cluster, member) {
            Ok(listed) => (listed.id, listed.is_learner),
            Err(why) => return Err(format!("{why}: `member add {}` makes it one", member.process)),
        };
        let allowed = may_leave(&cluster.listed, &cluster.up, id, true);
        if !force {
            allowed.map_err(hint)?;
        }
        self.leave(place, &cluster, id, force).await?;
        let entered = self.enter(place, &cluster, learner, delay_ms).await;
        let text = entered.map_err(|why| {
            format!("{id:x} was removed from the cluster, but: {why}; `member add {}` tries again", member.process)
        })?;
        Ok(format!("{id:x} removed, {text}"))
    }

    /// Out of the cluster, and down.
    async fn leave(&self, place: &Place, cluster: &Cluster, id: u64, force: bool) -> Result<(), String> {
        let allowed = may_leave(&cluster.listed, &cluster.up, id, false);
        if !force {
            allowed?;
        }
        // Where the others are no quorum of those who vote now, it votes for its own removal.
        let is_needed = may_leave(&cluster.listed, &cluster.up, id, true).is_err();
        if !is_needed {
            self.act(&place.member, Action::Stop).await?;
        }
        let removed = until(async || {
            if !list(&cluster.client).await?.iter().any(|listed| listed.id == id) {
                return Ok(Some(()));
            }
            let deadline = Deadline::after(CALL_MAX);
            cluster.client.member_remove(id, deadline).await.map_err(|error| words(&error))?;
            Ok(Some(()))
        });
        removed.await.map_err(|why| format!("{id:x} could not be removed from the cluster: {why}"))?;
        self.act(&place.member, Action::Stop).await.map(drop)
    }

    /// Into the cluster, with empty data.
    async fn enter(&self, place: &Place, cluster: &Cluster, learner: bool, delay_ms: u64) -> Result<String, String> {
        let member = &place.member;
        if member.joins {
            let text = self.start(member, delay_ms, None).await?;
            self.back(member).await?;
            return Ok(format!("{text}, and has joined"));
        }
        let listed = until(async || {
            let listed = list(&cluster.client).await?;
            if find(&listed, member).is_some() {
                return Ok(Some(listed));
            }
            let request = MemberAddRequest { peer_ur_ls: member.peer_urls.clone(), is_learner: learner };
            let added = cluster.client.member_add(request, Deadline::after(CALL_MAX)).await;
            added.map(|added| Some(added.members)).map_err(|error| words(&error))
        });
        let listed = listed.await.map_err(|why| format!("the cluster does not take it: {why}"))?;
        let id = find(&listed, member).map(|listed| listed.id).unwrap_or_default();
        let text = self.start(member, delay_ms, Some(initial_cluster(&listed, member))).await?;
        self.back(member).await?;
        Ok(format!("added as {id:x}{}, {text}", if learner { " without a vote" } else { "" }))
    }

    /// Wipes and starts it, with further words behind its command.
    async fn start(&self, member: &Member, delay_ms: u64, appended: Option<String>) -> Result<String, String> {
        let ending = |ending: crate::supervisor::control::vocabulary::Ending| ending.to_string();
        self.handle.append(member.process.clone(), appended).await.map_err(ending)?;
        self.act(member, Action::Restart { delay_ms, clean: true }).await
    }

    async fn act(&self, member: &Member, action: Action) -> Result<String, String> {
        let acted = self.handle.act(action, vec![member.process.clone()], self.by.clone()).await;
        let results = acted.map_err(|ending| ending.to_string())?;
        match results.into_iter().next() {
            Some(result) if result.ok => Ok(result.text),
            Some(result) => Err(result.text),
            None => Err("nothing came of it".to_owned()),
        }
    }

    /// Waits until it answers and knows who leads.
    async fn back(&self, member: &Member) -> Result<(), String> {
        let back = until(async || match member.status(ASK_MAX).await? {
            status if status.leader_id != 0 => Ok(Some(())),
            _ => Err("it knows no leader".to_owned()),
        });
        back.await.map_err(|why| format!("started, but not back: {why}"))
    }

    /// Whether nobody but itself is in its cluster, as it says.
    async fn is_its_own_cluster(&self, member: &Member) -> bool {
        let Ok(client) = Member::client_of(&[member]) else { return false };
        if member.status(ASK_MAX).await.is_err() {
            return false;
        }
        let request = MemberListRequest { linearizable: false };
        match client.member_list(request, Deadline::after(CALL_MAX)).await {
            Ok(response) => response.members.len() == 1 && find(&response.members, member).is_some(),
            Err(_) => false,
        }
    }

    /// The cluster that the others are in, as long as they are a quorum of it.
    async fn cluster(&self, member: &Member) -> Result<Cluster, String> {
        let everyone: Vec<&Member> = self.places.iter().map(|place| &place.member).collect();
        let asked = join_all(everyone.iter().map(|other| other.status(ASK_MAX))).await;
        let others: Vec<(&Member, MemberStatus)> = everyone
            .into_iter()
            .zip(asked)
            .filter_map(|(other, status)| Some((other, status.ok()?)))
            .filter(|(_, status)| status.leader_id != 0)
            .collect();
        let votes = |(other, status): &&(&Member, MemberStatus)| {
            other.process != member.process && status.role != Role::Learner
        };
        let voters: Vec<&Member> = others.iter().filter(votes).map(|(other, _)| *other).collect();
        if voters.is_empty() {
            return Err("no other voting member of its cluster is up: it has no quorum without it".to_owned());
        }
        let client = Member::client_of(&voters)?;
        let listed = list(&client).await.map_err(|why| format!("its cluster has no quorum without it: {why}"))?;
        let ids: BTreeSet<u64> = listed.iter().map(|listed| listed.id).collect();
        let up = others.iter().map(|(_, status)| status.member_id).filter(|id| ids.contains(id)).collect();
        Ok(Cluster { client, listed, up })
    }
}

/// The entry of a process in a list of members: by its peer URLs, as no two members have the same.
fn find<'a>(listed: &'a [Listed], member: &Member) -> Option<&'a Listed> {
    listed.iter().find(|listed| listed.peer_ur_ls.iter().any(|url| member.peer_urls.contains(url)))
}

fn known<'a>(cluster: &'a Cluster, member: &Member) -> Result<&'a Listed, String> {
    find(&cluster.listed, member).ok_or_else(|| "it is not a member of the cluster that the others are in".to_owned())
}

/// Whether it can be wiped and started with other flags.
fn startable(place: &Place) -> Result<(), String> {
    if !place.has_data_dir {
        return Err("its data directory is not known (# @name data-dir=…)".to_owned());
    }
    match place.member.joins || place.member.ends_its_command {
        true => Ok(()),
        false => Err("its command goes on behind the member: flags cannot be added to it".to_owned()),
    }
}

/// Whether a quorum is up without this member: of those who vote now if it is stopped first (`before`), else of those who
/// vote when it is gone.
fn may_leave(listed: &[Listed], up: &BTreeSet<u64>, id: u64, before: bool) -> Result<(), String> {
    let voters: Vec<u64> = listed.iter().filter(|listed| !listed.is_learner).map(|listed| listed.id).collect();
    if !voters.contains(&id) {
        return Ok(());
    }
    let count = if before { voters.len() } else { voters.len() - 1 };
    let needed = count / 2 + 1;
    let others = voters.iter().filter(|voter| **voter != id && up.contains(voter)).count();
    match (others >= needed && count > 0, before) {
        (true, _) => Ok(()),
        (false, true) => {
            Err(format!("without it {others} of {count} voting members would be up, and {needed} are needed"))
        }
        (false, false) => {
            Err(format!("when it is gone {others} of {count} voting members would be up, and {needed} are needed"))
        }
    }
}

/// What makes an empty member one of this cluster.
fn initial_cluster(listed: &[Listed], member: &Member) -> String {
    let own = find(listed, member).map(|listed| listed.id);
    let pairs = |listed: &Listed| -> Vec<String> {
        let name = if Some(listed.id) == own { &member.name } else { &listed.name };
        listed.peer_ur_ls.iter().map(|url| format!("{name}={url}")).collect()
    };
    let cluster = listed.iter().flat_map(pairs).collect::<Vec<_>>().join(",");
    format!("--initial-cluster '{}' --initial-cluster-state existing", cluster.replace('\'', "'\\''"))
}

async fn list(client: &Client) -> Result<Vec<Listed>, String> {
    let request = MemberListRequest { linearizable: true };
    let response = client.member_list(request, Deadline::after(CALL_MAX)).await;
    response.map(|response| response.members).map_err(|error| error.to_string())
}

fn words(error: &CallError) -> String {
    error.to_string()
}

/// Tries until there is something, or until it is of no use.
async fn until<T, F: Future<Output = Result<Option<T>, String>>>(mut attempt: impl FnMut() -> F) -> Result<T, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(Some(found)) => return Ok(found),
            Err(why) if Instant::now() >= deadline || FINAL.iter().any(|words| why.contains(words)) => return Err(why),
            Ok(None) | Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(id: u64, name: &str, is_learner: bool) -> Listed {
        let peer_ur_ls = vec![format!("http://127.0.0.1:{id}")];
        Listed { id, name: name.to_owned(), peer_ur_ls, is_learner, ..Listed::default() }
    }

    fn member(id: u64) -> Member {
        let command = format!("etcd --name it's --initial-advertise-peer-urls http://127.0.0.1:{id}");
        Member::of("m", &command.replace("it's", "\"it's\""), &|_| None).expect("a member")
    }

    #[test]
    fn nobody_leaves_whom_the_others_need() {
        let check = |voters: u64, up: &[u64], before: bool, expected: Option<&str>| {
            let mut list: Vec<Listed> = (1..=voters).map(|id| listed(id, "m", false)).collect();
            list.push(listed(9, "l", true));
            let found = may_leave(&list, &up.iter().copied().collect(), 1, before).err();
            assert_eq!(found.as_deref(), expected, "{voters} {up:?} {before}");
            assert_eq!(may_leave(&list, &BTreeSet::new(), 9, before), Ok(()), "a learner has no vote");
        };
        check(3, &[1, 2, 3], true, None);
        check(3, &[2, 3], true, None);
        check(3, &[1, 2], true, Some("without it 1 of 3 voting members would be up, and 2 are needed"));
        check(3, &[1, 2], false, Some("when it is gone 1 of 2 voting members would be up, and 2 are needed"));
        check(2, &[1, 2], true, Some("without it 1 of 2 voting members would be up, and 2 are needed"));
        check(2, &[1, 2], false, None);
        check(1, &[1], false, Some("when it is gone 0 of 0 voting members would be up, and 1 are needed"));
    }

    #[test]
    fn a_new_member_is_told_the_names_of_all() {
        let list = [listed(1, "m1", false), listed(2, "", false)];
        let expected =
            "--initial-cluster 'm1=http://127.0.0.1:1,it'\\''s=http://127.0.0.1:2' --initial-cluster-state existing";
        assert_eq!(initial_cluster(&list, &member(2)), expected);
        assert_eq!(find(&list, &member(2)).map(|listed| listed.id), Some(2));
        assert!(find(&list, &member(3)).is_none());
    }
}
