//! One change of the membership, step by step, while everything else goes on.
//!
//! ```text
//!  remove ─▶ it goes on for a while ─▶ its data is wiped ─▶ it stays away ─▶ add as learner ─▶ start ─▶ promote
//!  update of its peer URL, under which its relay is reached just as before
//! ```
//!
//! There is one change at a time, and nothing is wiped before the removal is known to be done: whoever counts for a
//! majority has its data. A step whose outcome is unknown is asked for again, and the list of members says whether it was
//! done; none is ever given up, as one that comes true later would be worse.

use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;
use std::time::Instant;

use tokio::task::JoinHandle;

use crate::client::CallError;
use crate::client::Client;
use crate::client::Config;
use crate::client::Deadline;
use crate::disk::sim::Dice;
use crate::proto::etcdserverpb::Member as Listed;
use crate::proto::etcdserverpb::MemberAddRequest;
use crate::proto::etcdserverpb::MemberListRequest;
use crate::proto::etcdserverpb::MemberUpdateRequest;
use crate::torture::checker::Outcome;
use crate::torture::checker::model::Request;
use crate::torture::clients::Link;
use crate::torture::clients::Record;
use crate::torture::workload::Workload;

/// Longest that one attempt is waited for: longer than a member's own deadline for a proposal is seldom of use.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// What is asked of the cluster.
#[derive(Clone, Debug)]
pub enum Wish {
    Remove {
        id: u64,
    },
    /// As a learner. `before` are ids that had the URL.
    Add {
        url: String,
        before: Vec<u64>,
    },
    Promote {
        id: u64,
    },
    Update {
        id: u64,
        url: String,
    },
}

/// Who asks, and whom.
pub struct Asker {
    /// All members but the one that is meant.
    pub endpoints: Vec<String>,
    pub record: Arc<Record>,
    /// Between two changes something is written: a 3.5.1 forgets a change that comes right behind another (etcd 15528).
    pub writes: Workload,
    pub dice: Dice,
}

impl Asker {
    /// Asks until it is done: the members by then.
    async fn ask(mut self, wish: Wish) -> Vec<Listed> {
        loop {
            let at = self.dice.below(self.endpoints.len() as u64);
            let endpoint = self.endpoints[usize::try_from(at).unwrap_or_default()].clone();
            if self.write(&endpoint).await
                && let Ok(client) = Client::open(Config::new(vec![endpoint]))
                && let Some(members) = attempt(&client, &wish).await
            {
                return members;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn write(&mut self, endpoint: &str) -> bool {
        let Ok(mut link) = Link::open(endpoint, &self.record).await else { return false };
        let put = Request::Put(self.writes.put());
        matches!(link.ask(put).await, (Outcome::Replied(_), _))
    }
}

/// The members if the wish has come true.
async fn attempt(client: &Client, wish: &Wish) -> Option<Vec<Listed>> {
    let deadline = || Deadline::after(ATTEMPT_MAX);
    let answer: Result<Vec<Listed>, CallError> = match wish {
        Wish::Remove { id } => client.member_remove(*id, deadline()).await.map(|answer| answer.members),
        Wish::Add { url, .. } => {
            let request = MemberAddRequest { peer_ur_ls: vec![url.clone()], is_learner: true };
            client.member_add(request, deadline()).await.map(|answer| answer.members)
        }
        Wish::Promote { id } => client.member_promote(*id, deadline()).await.map(|answer| answer.members),
        Wish::Update { id, url } => {
            let request = MemberUpdateRequest { id: *id, peer_ur_ls: vec![url.clone()] };
            client.member_update(request, deadline()).await.map(|answer| answer.members)
        }
    };
    let members = match answer {
        Ok(members) => members,
        // Refused, or done by an attempt before this one.
        Err(_) => client.member_list(MemberListRequest { linearizable: true }, deadline()).await.ok()?.members,
    };
    wish.is_true(&members).then_some(members)
}

impl Wish {
    fn is_true(&self, members: &[Listed]) -> bool {
        let of = |id: &u64| members.iter().find(|member| member.id == *id);
        match self {
            Wish::Remove { id } => of(id).is_none(),
            Wish::Add { url, before } => added(members, url, before).is_some(),
            Wish::Promote { id } => of(id).is_some_and(|member| !member.is_learner),
            Wish::Update { id, url } => of(id).is_some_and(|member| member.peer_ur_ls == [url.as_str()]),
        }
    }
}

fn added<'a>(members: &'a [Listed], url: &str, before: &[u64]) -> Option<&'a Listed> {
    members.iter().find(|member| member.peer_ur_ls.iter().any(|own| own == url) && !before.contains(&member.id))
}

/// What a joiner has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joiner {
    pub id: u64,
    /// For `--initial-cluster`.
    pub initial: String,
}

impl Joiner {
    /// `names`: the port in each member's peer URL, and its name. One that was just started may not have told it.
    fn of(members: &[Listed], url: &str, before: &[u64], names: &[(u16, String)]) -> Option<Joiner> {
        let id = added(members, url, before)?.id;
        let entries = members.iter().flat_map(|member| &member.peer_ur_ls).filter_map(|url| {
            let port: u16 = url.rsplit_once(':')?.1.parse().ok()?;
            let (_, name) = names.iter().find(|(own, _)| *own == port)?;
            Some(format!("{name}={url}"))
        });
        Some(Joiner { id, initial: entries.collect::<Vec<_>>().join(",") })
    }
}

/// What the runner has to do to the member.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Kill it and throw its data away.
    Wipe,
    /// Ask for its addition.
    Add,
    /// Start it, and ask for its promotion.
    Join(Joiner),
    /// It is a member like the others.
    Done,
}

/// A wish that is asked for until it comes true, or nobody waits for it any more.
struct Asked {
    members: Arc<OnceLock<Vec<Listed>>>,
    task: JoinHandle<()>,
}

impl Asked {
    fn start(asker: Asker, wish: Wish) -> Asked {
        let members = Arc::new(OnceLock::new());
        let told = Arc::clone(&members);
        let task = tokio::spawn(async move {
            // Set once, by this task alone.
            let _ = told.set(asker.ask(wish).await);
        });
        Asked { members, task }
    }

    /// The members by the time that it had come true.
    fn done(&self) -> Option<&[Listed]> {
        self.members.get().map(Vec::as_slice)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A change under way.
pub struct Change {
    /// Position of the member.
    pub at: usize,
    /// Ids that the member had.
    pub before: Vec<u64>,
    stage: Stage,
    /// How long it goes on after its removal, and is away then.
    linger: Duration,
    away: Duration,
}

enum Stage {
    Removing(Asked),
    Removed(Instant),
    Away(Instant),
    Adding { asked: Asked, url: String, names: Vec<(u16, String)> },
    Promoting(Asked),
    Updating(Asked),
}

impl Change {
    /// Removes the member, which comes back as another.
    pub fn remove(at: usize, id: u64, asker: Asker, linger: Duration, away: Duration) -> Change {
        let stage = Stage::Removing(Asked::start(asker, Wish::Remove { id }));
        Change { at, before: vec![id], stage, linger, away }
    }

    pub fn update(at: usize, id: u64, url: String, asker: Asker) -> Change {
        let stage = Stage::Updating(Asked::start(asker, Wish::Update { id, url }));
        Change { at, before: vec![id], stage, linger: Duration::ZERO, away: Duration::ZERO }
    }

    pub fn add(&mut self, url: String, names: Vec<(u16, String)>, asker: Asker) {
        let wish = Wish::Add { url: url.clone(), before: self.before.clone() };
        self.stage = Stage::Adding { asked: Asked::start(asker, wish), url, names };
    }

    pub fn promote(&mut self, id: u64, asker: Asker) {
        self.stage = Stage::Promoting(Asked::start(asker, Wish::Promote { id }));
    }

    /// The faults are over: it waits for nothing but answers.
    pub fn hurry(&mut self) {
        (self.linger, self.away) = (Duration::ZERO, Duration::ZERO);
        if let Stage::Removed(until) | Stage::Away(until) = &mut self.stage {
            *until = Instant::now();
        }
    }

    /// What it waits for, in words.
    pub fn waits_for(&self) -> &'static str {
        match self.stage {
            Stage::Removing(_) => "its removal",
            Stage::Removed(_) | Stage::Away(_) => "nothing",
            Stage::Adding { .. } => "its addition",
            Stage::Promoting(_) => "its promotion",
            Stage::Updating(_) => "the update of its peer URL",
        }
    }

    /// What is to be done now, if anything is.
    pub fn step(&mut self) -> Option<Step> {
        match &self.stage {
            Stage::Removing(asked) => {
                asked.done()?;
                self.stage = Stage::Removed(Instant::now() + self.linger);
                None
            }
            Stage::Removed(until) => (Instant::now() >= *until).then_some(Step::Wipe),
            Stage::Away(until) => (Instant::now() >= *until).then_some(Step::Add),
            Stage::Adding { asked, url, names } => Joiner::of(asked.done()?, url, &self.before, names).map(Step::Join),
            Stage::Promoting(asked) | Stage::Updating(asked) => asked.done().map(|_| Step::Done),
        }
    }

    /// Its data is gone.
    pub fn wiped(&mut self) {
        self.stage = Stage::Away(Instant::now() + self.away);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(id: u64, url: &str, is_learner: bool) -> Listed {
        Listed { id, peer_ur_ls: vec![url.to_owned()], is_learner, ..Listed::default() }
    }

    #[test]
    fn a_wish_is_true_when_the_list_says_so() {
        let members = [listed(1, "http://127.0.0.1:5", false), listed(2, "http://localhost:6", true)];
        let check = |wish: Wish, expected: bool| assert_eq!(wish.is_true(&members), expected, "{wish:?}");
        check(Wish::Remove { id: 1 }, false);
        check(Wish::Remove { id: 3 }, true);
        check(Wish::Promote { id: 1 }, true);
        check(Wish::Promote { id: 2 }, false);
        check(Wish::Promote { id: 3 }, false);
        check(Wish::Add { url: "http://localhost:6".to_owned(), before: vec![1] }, true);
        check(Wish::Add { url: "http://localhost:6".to_owned(), before: vec![2] }, false);
        check(Wish::Update { id: 2, url: "http://localhost:6".to_owned() }, true);
        check(Wish::Update { id: 1, url: "http://localhost:5".to_owned() }, false);
    }

    #[test]
    fn a_joiner_is_told_every_member_by_name() {
        let members = [listed(1, "http://127.0.0.1:5", false), listed(2, "http://localhost:6", true)];
        let names = [(5, "m1".to_owned()), (6, "m2".to_owned())];
        let joiner = Joiner::of(&members, "http://localhost:6", &[9], &names);
        let initial = "m1=http://127.0.0.1:5,m2=http://localhost:6".to_owned();
        assert_eq!(joiner, Some(Joiner { id: 2, initial }));
    }
}
