//! `rolling-restart`: every member once, one at a time, followers first and the leader last, never without a quorum.
//!
//! ```text
//!  who is left ─▶ not the leader, if anyone else is left ─▶ quorum without it? ─ no ─▶ give up, and say so
//!       ▲                                                        │ yes
//!       └──── pause ◀── answers, and knows a leader ◀── restart ─┘
//! ```

use std::future::Future;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Deserialize;
use serde::Serialize;
use tokio::time::Instant;

use crate::common::go_duration;
use crate::supervisor::control::vocabulary::Action;
use crate::supervisor::control::vocabulary::Handle;
use crate::supervisor::control::vocabulary::Requester;
use crate::supervisor::members::Member;
use crate::supervisor::targets::Role;

/// What a member may take to say how it is.
const ASK_MAX: Duration = Duration::from_millis(300);
/// Between two looks at members that are waited for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A member of the cluster as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The process's name.
    pub name: String,
    /// What it says it is; `None` if it does not answer.
    pub role: Option<Role>,
}

impl Seat {
    /// Answers, and knows who leads or does so itself.
    pub fn is_up(&self) -> bool {
        matches!(self.role, Some(Role::Leader | Role::Follower | Role::Learner))
    }

    pub fn leads(&self) -> bool {
        self.role == Some(Role::Leader)
    }

    /// Whoever does not answer is taken for one with a vote.
    pub fn votes(&self) -> bool {
        self.role != Some(Role::Learner)
    }
}

/// Whoever can say how the members are.
pub trait Electorate: Send + Sync {
    /// All members, in the order of the Procfile, also those that do not answer.
    fn look(&self) -> impl Future<Output = Vec<Seat>> + Send;
}

impl Electorate for [Member] {
    async fn look(&self) -> Vec<Seat> {
        let ask = async |member: &Member| Seat {
            name: member.process.clone(),
            role: member.status(ASK_MAX).await.ok().map(|status| status.role),
        };
        join_all(self.iter().map(ask)).await
    }
}

impl Electorate for Vec<Member> {
    fn look(&self) -> impl Future<Output = Vec<Seat>> + Send {
        self.as_slice().look()
    }
}

/// Voting members that may be away at once.
pub fn minority(voters: usize) -> usize {
    voters.saturating_sub(1) / 2
}

/// What is asked for, as the socket carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollingRequest {
    /// Processes that are members; none are all of them.
    #[serde(default)]
    pub names: Vec<String>,
    #[serde(default)]
    pub pause_between_ms: u64,
    /// For each member: until the others are a quorum, and until it is back.
    pub timeout_ms: u64,
}

/// The words on the command line.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct RollingArgs {
    /// Members: names, patterns or roles [default: all]
    pub names: Vec<String>,
    /// Calm between one member that is back and the next that goes
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = go_duration::parse)]
    pub pause_between: Duration,
    /// How long a member may take to be back, and the others to be a quorum before one goes
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = go_duration::parse)]
    pub timeout: Duration,
}

impl RollingArgs {
    pub fn request(&self) -> RollingRequest {
        RollingRequest {
            names: self.names.clone(),
            pause_between_ms: millis(self.pause_between),
            timeout_ms: millis(self.timeout),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Restarts members one after another; `tell` hears of each. The error says at whom it ended and why.
pub async fn restart<E: Electorate + ?Sized>(
    handle: &Handle,
    electorate: &E,
    request: &RollingRequest,
    by: Requester,
    mut tell: impl FnMut(String),
) -> Result<(), String> {
    let seats = electorate.look().await;
    let mut left: Vec<String> = match request.names.as_slice() {
        [] => seats.iter().map(|seat| seat.name.clone()).collect(),
        names => names.to_vec(),
    };
    if let Some(name) = left.iter().find(|name| !seats.iter().any(|seat| seat.name == **name)) {
        return Err(format!("{name} is no member of a cluster"));
    }
    if left.is_empty() {
        return Err("no process is a member of a cluster".to_owned());
    }
    let patience = Duration::from_millis(request.timeout_ms);
    let count = left.len();
    let mut done: Vec<String> = Vec::new();
    while !left.is_empty() {
        let failed = |name: &str, why: String| match done.as_slice() {
            [] => format!("{name}: {why}; nothing was restarted"),
            done => format!("{name}: {why}; restarted before: {}", done.join(", ")),
        };
        let (name, seats) = next(electorate, &left, patience).await.map_err(|(name, why)| failed(&name, why))?;
        let as_what = seats.iter().find(|seat| seat.name == name).and_then(|seat| seat.role);
        let as_what = as_what.map_or_else(|| "does not answer".to_owned(), |role| role.to_string());
        tell(format!("restarting {name} ({as_what}), {} of {count}", done.len() + 1));
        let action = Action::Restart { delay_ms: 0, clean: false };
        let results = handle.act(action, vec![name.clone()], by.clone()).await;
        let results = results.map_err(|ending| failed(&name, ending.to_string()))?;
        if let Some(refused) = results.into_iter().find(|result| !result.ok) {
            return Err(failed(&name, refused.text));
        }
        let began = Instant::now();
        back(electorate, &name, patience).await.map_err(|why| failed(&name, why))?;
        tell(format!("{name} is back after {:.1} s", began.elapsed().as_secs_f64()));
        left.retain(|other| *other != name);
        done.push(name);
        if !left.is_empty() && request.pause_between_ms > 0 {
            tokio::time::sleep(Duration::from_millis(request.pause_between_ms)).await;
        }
    }
    Ok(())
}

/// Who is next, once the others are a quorum; else whose turn it was, and why it may not go.
async fn next<E: Electorate + ?Sized>(
    electorate: &E,
    left: &[String],
    patience: Duration,
) -> Result<(String, Vec<Seat>), (String, String)> {
    let deadline = Instant::now() + patience;
    loop {
        let seats = electorate.look().await;
        let name = choose(&seats, left);
        let Err(why) = may_go(&seats, &name) else { return Ok((name, seats)) };
        if Instant::now() >= deadline {
            return Err((name, why));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The first of those that are left who does not lead.
fn choose(seats: &[Seat], left: &[String]) -> String {
    let leads = |name: &&String| seats.iter().any(|seat| seat.name == **name && seat.leads());
    left.iter().find(|name| !leads(name)).or(left.first()).cloned().unwrap_or_default()
}

/// Whether a quorum is up without this member.
fn may_go(seats: &[Seat], name: &str) -> Result<(), String> {
    let voters: Vec<&Seat> = seats.iter().filter(|seat| seat.votes()).collect();
    if !voters.iter().any(|seat| seat.name == name) {
        return Ok(());
    }
    let needed = voters.len() / 2 + 1;
    let up = voters.iter().filter(|seat| seat.name != name && seat.is_up()).count();
    match up >= needed {
        true => Ok(()),
        false => {
            Err(format!("without it {up} of {} voting members would be up, and {needed} are needed", voters.len()))
        }
    }
}

/// Waits until a member answers and knows who leads.
async fn back<E: Electorate + ?Sized>(electorate: &E, name: &str, patience: Duration) -> Result<(), String> {
    let deadline = Instant::now() + patience;
    loop {
        let seats = electorate.look().await;
        if seats.iter().any(|seat| seat.name == name && seat.is_up()) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(format!("not back after {}", go_duration::format(patience)));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::sync::mpsc;

    use super::*;
    use crate::supervisor::control::vocabulary::Call;
    use crate::supervisor::control::vocabulary::NamedResult;

    /// Members as they say they are; a restart of the leader makes the next one lead.
    struct Fake(Mutex<Vec<Seat>>);

    impl Fake {
        fn new(roles: &[(&str, Option<Role>)]) -> Fake {
            Fake(Mutex::new(roles.iter().map(|(name, role)| Seat { name: (*name).to_owned(), role: *role }).collect()))
        }

        fn restarted(&self, name: &str) {
            let mut seats = self.0.lock().unwrap();
            if seats.iter().any(|seat| seat.name == name && seat.leads()) {
                seats.iter_mut().for_each(|seat| {
                    if seat.is_up() && seat.role != Some(Role::Learner) {
                        seat.role = Some(if seat.name == name { Role::Follower } else { Role::Leader });
                    }
                });
            }
        }
    }

    impl Electorate for Fake {
        async fn look(&self) -> Vec<Seat> {
            self.0.lock().unwrap().clone()
        }
    }

    /// The restarts in their order, and how it ended.
    async fn rolled(fake: &Fake, names: &[&str]) -> (Vec<String>, Result<(), String>) {
        let (calls, mut called) = mpsc::channel(4);
        let request = RollingRequest {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            pause_between_ms: 0,
            timeout_ms: 100,
        };
        let mut told = Vec::new();
        let serve = async {
            let mut restarted = Vec::new();
            while let Some(call) = called.recv().await {
                if let Call::Act { action: Action::Restart { .. }, names, answer, .. } = call {
                    let name = names[0].clone();
                    fake.restarted(&name);
                    restarted.push(name.clone());
                    let _ = answer.send(vec![NamedResult { name, ok: true, text: String::new() }]);
                }
            }
            restarted
        };
        let roll = async {
            let handle = Handle::new(calls);
            restart(&handle, fake, &request, Requester::default(), |line| told.push(line)).await
        };
        let (restarted, ended) = tokio::join!(serve, roll);
        assert_eq!(told.iter().filter(|line| line.starts_with("restarting")).count(), restarted.len(), "{told:?}");
        (restarted, ended)
    }

    const FOLLOWS: Option<Role> = Some(Role::Follower);
    const LEADS: Option<Role> = Some(Role::Leader);

    #[tokio::test]
    async fn the_leader_goes_last() {
        let fake = Fake::new(&[("m1", LEADS), ("m2", FOLLOWS), ("m3", FOLLOWS), ("m4", Some(Role::Learner))]);
        let (restarted, ended) = rolled(&fake, &[]).await;
        assert_eq!((restarted.join(" ").as_str(), ended), ("m2 m3 m4 m1", Ok(())));
        let (restarted, _) =
            rolled(&Fake::new(&[("m1", LEADS), ("m2", FOLLOWS), ("m3", FOLLOWS)]), &["m1", "m3"]).await;
        assert_eq!(restarted.join(" "), "m3 m1");
    }

    #[tokio::test]
    async fn nobody_goes_without_whom_there_is_no_quorum() {
        let fake = Fake::new(&[("m1", LEADS), ("m2", FOLLOWS), ("m3", None)]);
        let (restarted, ended) = rolled(&fake, &["m2"]).await;
        assert!(restarted.is_empty());
        let expected = "m2: without it 1 of 3 voting members would be up, and 2 are needed; nothing was restarted";
        assert_eq!(ended.unwrap_err(), expected);
        // The one that is away already may be restarted, and is then waited for.
        let (restarted, ended) = rolled(&fake, &["m3"]).await;
        assert_eq!((restarted.join(" "), ended.unwrap_err().contains("not back")), ("m3".to_owned(), true));
    }

    #[tokio::test]
    async fn one_or_two_members_are_too_few() {
        let (restarted, ended) = rolled(&Fake::new(&[("m1", LEADS)]), &[]).await;
        assert!(restarted.is_empty() && ended.unwrap_err().starts_with("m1: without it 0 of 1 voting members"));
        let (restarted, ended) = rolled(&Fake::new(&[("m1", LEADS), ("m2", FOLLOWS)]), &[]).await;
        assert!(restarted.is_empty() && ended.unwrap_err().starts_with("m2: without it 1 of 2 voting members"));
        let (_, ended) = rolled(&Fake::new(&[("m1", LEADS)]), &["web"]).await;
        assert_eq!(ended.unwrap_err(), "web is no member of a cluster");
    }
}
