//! `chaos`: faults that a seed chooses, done to a running cluster, and taken back again.
//!
//! ```text
//!  seed ─▶ faults::schedule (when, what, whom, how long) ─▶ Chaos: whom does it hit now? ─▶ loop (kill, pause, restart)
//!                                                             ▲            │             └▶ links (partition, delay)
//!                                    members, who leads ──────┘            └─▶ with keep_quorum: never more than a minority
//! ```
//!
//! One seed makes the same choices each time. Which member leads then, and whether a quorum would be lost, is known only
//! when it happens; so a strike may hit fewer members than it was to, or none. `Chaos` is pure: it is told what time it
//! is, and says what to do.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::common::go_duration;
use crate::faults::kind;
use crate::faults::kind::Kind;
use crate::faults::network::Link;
use crate::faults::schedule;
use crate::faults::schedule::Strike;
use crate::faults::schedule::Ways;
use crate::faults::schedule::What;
use crate::faults::schedule::Whom;
use crate::supervisor::control::vocabulary::Action;
use crate::supervisor::control::vocabulary::Handle;
use crate::supervisor::control::vocabulary::Requester;
use crate::supervisor::links::Links;
use crate::supervisor::links::NO_RELAYS;
use crate::supervisor::rolling::Electorate;
use crate::supervisor::rolling::Seat;
use crate::supervisor::rolling::minority;

/// Faults of processes: what can be done to any cluster.
const PROCESS_FAULTS: [Kind; 3] = [Kind::Kill, Kind::Pause, Kind::Restart];
/// Faults of links, which need relays.
const LINK_FAULTS: [Kind; 2] = [Kind::Partition, Kind::Delay];
/// Between two looks at the members, and at the time.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long everything may take to be well again at the end.
const RECOVERY_MAX: Duration = Duration::from_secs(60);
/// Actions that have ended and are not yet told of. Full means that they wait.
const ENDED_MAX: usize = 64;
/// More faults in one run are typing mistakes; each is told before.
const FAULTS_MAX: u128 = 10_000;
/// Members are not looked at more often than this, either.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

/// What is asked for, as the socket carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChaosRequest {
    pub seed: u64,
    pub duration_ms: u64,
    pub interval_ms: u64,
    /// Names of faults; none are all that can be done here.
    #[serde(default)]
    pub faults: Vec<String>,
    #[serde(default)]
    pub keep_quorum: bool,
}

/// The words on the command line.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct ChaosArgs {
    /// Chooses what is done to whom; the same seed makes the same choices [default: from the clock]
    #[arg(long)]
    pub seed: Option<u64>,
    /// How long faults are made
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = go_duration::parse)]
    pub duration: Duration,
    /// Calm between two faults, on average
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = go_duration::parse)]
    pub interval: Duration,
    /// kill, pause, restart, and with relays partition, delay [default: all of them]
    #[arg(long, value_name = "FAULT", value_delimiter = ',')]
    pub faults: Vec<String>,
    /// Never more than a minority of the voting members away at once
    #[arg(long)]
    pub keep_quorum: bool,
}

impl ChaosArgs {
    pub fn request(&self) -> ChaosRequest {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let clock = || chrono::Utc::now().timestamp_micros().unsigned_abs() % 1_000_000_000;
        ChaosRequest {
            seed: self.seed.unwrap_or_else(clock),
            duration_ms: millis(self.duration),
            interval_ms: millis(self.interval),
            faults: self.faults.clone(),
            keep_quorum: self.keep_quorum,
        }
    }
}

/// Something that was done or not done, for people and for the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Since the beginning.
    pub at_ms: u64,
    /// Processes that it is about.
    pub names: Vec<String>,
    /// `kill`, `partition`, ...; `chaos` for what is about the run.
    pub kind: String,
    pub text: String,
    /// Something was taken back.
    pub healed: bool,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.at_ms as f64 / 1000.0;
        match self.names.is_empty() {
            true => write!(f, "{seconds:7.2}s  {}", self.text),
            false => write!(f, "{seconds:7.2}s  {} {}", self.text, self.names.join(",")),
        }
    }
}

/// The faults that are meant.
fn kinds(words: &[String], has_relays: bool) -> Result<BTreeSet<Kind>, String> {
    let possible = PROCESS_FAULTS.into_iter().chain(LINK_FAULTS.into_iter().filter(|_| has_relays));
    let possible: BTreeSet<Kind> = possible.collect();
    if words.is_empty() || words.iter().any(|word| word == "all") {
        return Ok(possible);
    }
    let named = kind::parse(words, false).map_err(|error| error.to_string())?;
    if let Some(other) = named.difference(&possible).next() {
        return Err(match LINK_FAULTS.contains(other) {
            true => NO_RELAYS.to_owned(),
            false => {
                format!("{other} cannot be done to a running stack; kill, pause, restart, partition and delay can")
            }
        });
    }
    Ok(named)
}

/// What is to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Order {
    Act {
        place: usize,
        action: Action,
    },
    /// Links are no longer what they were.
    Wire,
    Tell {
        places: Vec<usize>,
        kind: &'static str,
        text: String,
        healed: bool,
    },
}

/// Something that was begun and will be taken back.
#[derive(Clone, Debug)]
struct Trouble {
    ends: Duration,
    what: What,
    places: Vec<usize>,
}

/// The run: which strikes are still to come, and which troubles are still to be taken back.
#[derive(Debug)]
struct Chaos {
    /// The next one last.
    coming: Vec<Strike>,
    troubles: Vec<Trouble>,
    /// Members with an action under way.
    acting: BTreeMap<usize, usize>,
    keep_quorum: bool,
    done: usize,
    skipped: usize,
}

impl Chaos {
    fn new(mut strikes: Vec<Strike>, keep_quorum: bool) -> Chaos {
        strikes.reverse();
        Chaos { coming: strikes, troubles: Vec::new(), acting: BTreeMap::new(), keep_quorum, done: 0, skipped: 0 }
    }

    fn is_over(&self) -> bool {
        self.coming.is_empty() && self.troubles.is_empty() && self.acting.is_empty()
    }

    /// What is due by now. Ends come before new strikes.
    fn step(&mut self, now: Duration, seats: &[Seat]) -> Vec<Order> {
        let mut orders = Vec::new();
        let (over, lasting) = std::mem::take(&mut self.troubles).into_iter().partition(|trouble| trouble.ends <= now);
        self.troubles = lasting;
        for trouble in over {
            self.end(trouble, &mut orders);
        }
        while self.coming.last().is_some_and(|strike| strike.at <= now) {
            if let Some(strike) = self.coming.pop() {
                self.strike(strike, now, seats, &mut orders);
            }
        }
        orders
    }

    /// Takes everything back, and does nothing more.
    fn stop(&mut self) -> Vec<Order> {
        self.coming.clear();
        let mut orders = Vec::new();
        for trouble in std::mem::take(&mut self.troubles) {
            self.end(trouble, &mut orders);
        }
        orders
    }

    fn acted(&mut self, place: usize) {
        if let Some(count) = self.acting.get_mut(&place) {
            *count -= 1;
            if *count == 0 {
                self.acting.remove(&place);
            }
        }
    }

    fn act(&mut self, place: usize, action: Action, orders: &mut Vec<Order>) {
        *self.acting.entry(place).or_default() += 1;
        orders.push(Order::Act { place, action });
    }

    fn strike(&mut self, strike: Strike, now: Duration, seats: &[Seat], orders: &mut Vec<Order>) {
        let meant = meant(strike.whom, seats);
        let (hit, why) = self.hit(&meant, strike.what, seats);
        let kind = kind_name(strike.what);
        if hit.is_empty() {
            self.skipped += 1;
            orders.push(Order::Tell {
                places: meant,
                kind,
                text: format!("{} not done, {why}:", strike.what),
                healed: false,
            });
            return;
        }
        self.done += 1;
        let text = format!("{} for {:.1}s:", strike.what, strike.length.as_secs_f64());
        orders.push(Order::Tell { places: hit.clone(), kind, text, healed: false });
        for place in hit.iter().copied() {
            match strike.what {
                What::Pause => self.act(place, Action::Pause { for_ms: None }, orders),
                What::Restart => {
                    let delay_ms = u64::try_from(strike.length.as_millis()).unwrap_or(u64::MAX);
                    self.act(place, Action::Restart { delay_ms, clean: false }, orders);
                }
                What::Partition { .. } | What::Delay { .. } => {}
                _ => self.act(place, Action::Kill { signal: KILL, leader_only: false, stay_down: true }, orders),
            }
        }
        // A restart ends by itself.
        if strike.what != What::Restart {
            self.troubles.push(Trouble { ends: now + strike.length, what: strike.what, places: hit });
        }
        if is_of_links(strike.what) {
            orders.push(Order::Wire);
        }
    }

    fn end(&mut self, trouble: Trouble, orders: &mut Vec<Order>) {
        let kind = kind_name(trouble.what);
        let text = match trouble.what {
            What::Pause => "resumed",
            What::Partition { .. } | What::Delay { .. } => "healed",
            _ => "started",
        };
        let text = format!("{text} after {kind}:");
        orders.push(Order::Tell { places: trouble.places.clone(), kind, text, healed: true });
        match trouble.what {
            What::Pause => trouble.places.iter().for_each(|place| self.act(*place, Action::Resume, orders)),
            What::Partition { .. } | What::Delay { .. } => orders.push(Order::Wire),
            _ => {
                // Not a start: what is left of a killed process may still be on its way out, and a start would not wait.
                let again = Action::Restart { delay_ms: 0, clean: false };
                trouble.places.iter().for_each(|place| self.act(*place, again.clone(), orders));
            }
        }
    }

    /// Whom of those that are meant a fault may hit now, and why the others are left alone.
    fn hit(&self, meant: &[usize], what: What, seats: &[Seat]) -> (Vec<usize>, &'static str) {
        // One thing at a time is done to a process; links may be bad besides.
        let busy = |place: usize| {
            let in_trouble =
                |trouble: &Trouble| trouble.places.contains(&place) && is_of_links(trouble.what) == is_of_links(what);
            self.troubles.iter().any(in_trouble) || (!is_of_links(what) && self.acting.contains_key(&place))
        };
        let free: Vec<usize> = meant.iter().copied().filter(|place| !busy(*place)).collect();
        if free.is_empty() {
            return (free, "they have troubles already");
        }
        if !self.keep_quorum || matches!(what, What::Delay { .. }) {
            return (free, "");
        }
        let voters: Vec<usize> = (0..seats.len()).filter(|place| seats[*place].votes()).collect();
        let mut away: BTreeSet<usize> = self.away(seats).into_iter().filter(|place| voters.contains(place)).collect();
        let mut hit = Vec::new();
        for place in free {
            if !voters.contains(&place) || away.contains(&place) {
                hit.push(place);
            } else if away.len() < minority(voters.len()) {
                away.insert(place);
                hit.push(place);
            }
        }
        (hit, "a quorum would be lost")
    }

    /// Members that others cannot count on: in trouble, with an action under way, or not answering.
    fn away(&self, seats: &[Seat]) -> BTreeSet<usize> {
        let counts = |trouble: &&Trouble| !matches!(trouble.what, What::Delay { .. });
        let troubled = self.troubles.iter().filter(counts).flat_map(|trouble| trouble.places.iter().copied());
        let silent = (0..seats.len()).filter(|place| !seats[*place].is_up());
        troubled.chain(self.acting.keys().copied()).chain(silent).collect()
    }

    /// What all troubles together make of a link.
    fn link(&self, from: usize, to: usize) -> Link {
        let mut link = Link::default();
        for trouble in &self.troubles {
            let (out, into) = (trouble.places.contains(&from), trouble.places.contains(&to));
            match trouble.what {
                What::Partition { ways, cut, .. }
                    if match ways {
                        Ways::Both => out != into,
                        Ways::Out => out && !into,
                        Ways::In => !out && into,
                    } =>
                {
                    link.cut |= cut;
                    link.held |= !cut;
                }
                What::Delay { millis } if out || into => link.delay = link.delay.max(Duration::from_millis(millis)),
                _ => {}
            }
        }
        link
    }
}

const KILL: i32 = nix::sys::signal::Signal::SIGKILL as i32;

fn is_of_links(what: What) -> bool {
    LINK_FAULTS.contains(&what.kind())
}

fn kind_name(what: What) -> &'static str {
    kind::KINDS.iter().find(|(_, kind)| *kind == what.kind()).map_or("fault", |(name, _)| *name)
}

/// The places that a strike means, by who leads now. Without a leader the first member is meant in its place.
fn meant(whom: Whom, seats: &[Seat]) -> Vec<usize> {
    let (first, count) = match whom {
        Whom::Leader { count } => (seats.iter().position(Seat::leads).unwrap_or(0), count),
        Whom::Member { first, count } => (first, count),
    };
    (0..count.min(seats.len())).map(|step| (first + step) % seats.len()).collect()
}

/// Makes faults until the time is over or `stop` says so, takes everything back, and waits until all members are well.
/// `tell` hears of everything. The error says why nothing could be done, or who is not well.
pub async fn run<E: Electorate + ?Sized>(
    handle: &Handle,
    electorate: &E,
    links: Option<&Links>,
    request: &ChaosRequest,
    by: Requester,
    mut stop: watch::Receiver<bool>,
    mut tell: impl FnMut(Told),
) -> Result<(), String> {
    let kinds = kinds(&request.faults, links.is_some())?;
    let duration = Duration::from_millis(request.duration_ms);
    let interval = Duration::from_millis(request.interval_ms);
    if interval < INTERVAL_MIN || duration.as_millis() / interval.as_millis() > FAULTS_MAX {
        return Err(format!("an interval of at least 10ms and at most {FAULTS_MAX} faults are expected"));
    }
    let seats = electorate.look().await;
    if seats.is_empty() {
        return Err("no process is a member of a cluster".to_owned());
    }
    let names: Vec<String> = seats.iter().map(|seat| seat.name.clone()).collect();
    let strikes = schedule::plan_paced(request.seed, &kinds, names.len(), duration, interval);
    let began = Instant::now();
    let mut say = |places: &[usize], kind: &str, text: String, healed: bool| {
        tell(Told {
            at_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            names: places.iter().filter_map(|place| names.get(*place).cloned()).collect(),
            kind: kind.to_owned(),
            text,
            healed,
        });
    };
    let plural = |count: usize| if count == 1 { "fault" } else { "faults" };
    let known = format!(
        "seed {}: {} {} in {}",
        request.seed,
        strikes.len(),
        plural(strikes.len()),
        go_duration::format(duration)
    );
    say(&[], "chaos", known, false);
    for Strike { at, length, what, whom } in &strikes {
        let (at, length) = (at.as_secs_f64(), length.as_secs_f64());
        say(&[], "plan", format!("planned at {at:.2}s for {length:.1}s: {what}, {whom}"), false);
    }
    let place_of = |name: &str| links.and_then(|links| links.names().iter().position(|known| known == name));
    let relays: Vec<Option<usize>> = names.iter().map(|name| place_of(name)).collect();
    let mut chaos = Chaos::new(strikes, request.keep_quorum);
    let (ended, mut endings) = mpsc::channel::<(usize, Result<(), String>)>(ENDED_MAX);
    let mut stopped = false;
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !chaos.is_over() {
        let orders = tokio::select! {
            _ = tick.tick() => {
                let now = began.elapsed();
                let due = chaos.coming.last().is_some_and(|strike| strike.at <= now);
                // Members are asked only when it matters: it costs them time.
                let seats = if due { electorate.look().await } else { Vec::new() };
                chaos.step(now, &seats)
            }
            Some((place, result)) = endings.recv() => {
                chaos.acted(place);
                result.err().map(|error| vec![Order::Tell { places: vec![place], kind: "chaos", text: format!("failed: {error}:"), healed: false }])
                    .unwrap_or_default()
            }
            () = told_to_stop(&mut stop), if !stopped => {
                stopped = true;
                chaos.stop()
            }
        };
        for order in orders {
            match order {
                Order::Tell { places, kind, text, healed } => say(&places, kind, text, healed),
                Order::Wire => {
                    if let Some(links) = links {
                        let member = |relay: usize| relays.iter().position(|place| *place == Some(relay));
                        links.overlay(|from, to| match (member(from), member(to)) {
                            (Some(from), Some(to)) => chaos.link(from, to),
                            _ => Link::default(),
                        });
                    }
                }
                Order::Act { place, action } => {
                    let (handle, ended, name, by) = (handle.clone(), ended.clone(), names[place].clone(), by.clone());
                    tokio::spawn(async move {
                        let result = match handle.act(action, vec![name], by).await {
                            Ok(results) => {
                                results.into_iter().find(|result| !result.ok).map_or(Ok(()), |bad| Err(bad.text))
                            }
                            Err(ending) => Err(ending.to_string()),
                        };
                        // The run is gone only when nobody waits for this any more.
                        let _ = ended.send((place, result)).await;
                    });
                }
            }
        }
    }
    say(&[], "chaos", format!("{} done, {} not done; waiting for all members", chaos.done, chaos.skipped), false);
    recover(electorate).await?;
    say(&[], "chaos", "all members are well".to_owned(), false);
    Ok(())
}

/// Returns when it is to stop, or when nobody is left who could say so.
async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Waits until all members answer and know who leads.
async fn recover<E: Electorate + ?Sized>(electorate: &E) -> Result<(), String> {
    let deadline = Instant::now() + RECOVERY_MAX;
    loop {
        let seats = electorate.look().await;
        let ill: Vec<String> = seats.iter().filter(|seat| !seat.is_up()).map(|seat| seat.name.clone()).collect();
        if ill.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(format!("not well after {}: {}", go_duration::format(RECOVERY_MAX), ill.join(", ")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::targets::Role;

    const STEP: Duration = Duration::from_millis(50);

    /// A cluster that does what it is told at the next step.
    struct World {
        chaos: Chaos,
        now: Duration,
        dead: BTreeSet<usize>,
        paused: BTreeSet<usize>,
        size: usize,
        learner: Option<usize>,
        /// Voters that were away at once, at most.
        worst: usize,
        said: Vec<String>,
    }

    impl World {
        fn new(seed: u64, size: usize, learner: Option<usize>, keep_quorum: bool) -> World {
            let kinds = kinds(&[], true).unwrap();
            let strikes = schedule::plan_paced(seed, &kinds, size, Duration::from_secs(60), Duration::from_millis(700));
            let (dead, paused) = (BTreeSet::new(), BTreeSet::new());
            let chaos = Chaos::new(strikes, keep_quorum);
            World { chaos, now: Duration::ZERO, dead, paused, size, learner, worst: 0, said: Vec::new() }
        }

        fn seats(&self) -> Vec<Seat> {
            let up = |place: &usize| !self.dead.contains(place) && !self.paused.contains(place);
            let leader = (0..self.size).find(|place| up(place) && Some(*place) != self.learner);
            let role = |place: usize| match up(&place) {
                false => None,
                true if Some(place) == self.learner => Some(Role::Learner),
                true if Some(place) == leader => Some(Role::Leader),
                true => Some(Role::Follower),
            };
            (0..self.size).map(|place| Seat { name: format!("m{place}"), role: role(place) }).collect()
        }

        fn obey(&mut self, orders: Vec<Order>) {
            for order in orders {
                match order {
                    Order::Act { place, action } => {
                        match action {
                            Action::Kill { .. } => drop(self.dead.insert(place)),
                            Action::Restart { .. } => drop(self.dead.remove(&place)),
                            Action::Pause { .. } => drop(self.paused.insert(place)),
                            Action::Resume => drop(self.paused.remove(&place)),
                            _ => {}
                        }
                        self.chaos.acted(place);
                    }
                    Order::Tell { places, text, .. } => self.said.push(format!("{text} {places:?}")),
                    Order::Wire => {}
                }
            }
            let cut_off = |place: usize| {
                let with = |other: usize| self.chaos.link(place, other).cut || self.chaos.link(place, other).held;
                (0..self.size).filter(|other| *other != place && with(*other)).count() > self.size / 2
            };
            let away = |place: &usize| self.dead.contains(place) || self.paused.contains(place) || cut_off(*place);
            let voters = (0..self.size).filter(|place| Some(*place) != self.learner);
            self.worst = self.worst.max(voters.filter(away).count());
        }

        fn run(mut self) -> World {
            while !self.chaos.is_over() {
                let (now, seats) = (self.now, self.seats());
                let orders = self.chaos.step(now, &seats);
                self.obey(orders);
                self.now += STEP;
            }
            self
        }
    }

    #[test]
    fn a_kept_quorum_is_never_lost_and_one_that_is_not_kept_is() {
        for seed in 0..40 {
            let world = World::new(seed, 6, Some(5), true).run();
            assert!(world.worst <= 2, "seed {seed}: {} of 5 voters away", world.worst);
            assert!(world.chaos.done > 20 && world.chaos.skipped > 0, "seed {seed}: {} done", world.chaos.done);
            assert!(World::new(seed, 3, None, true).run().worst <= 1, "seed {seed}");
        }
        assert!((0..40).any(|seed| World::new(seed, 3, None, false).run().worst > 1));
    }

    #[test]
    fn with_two_members_nobody_may_be_away() {
        let world = World::new(3, 2, None, true).run();
        assert_eq!(world.worst, 0);
        assert!(world.said.iter().any(|line| line.contains("a quorum would be lost")), "{:?}", world.said);
    }

    #[test]
    fn one_seed_does_the_same_each_time() {
        let said = |seed| World::new(seed, 3, None, true).run().said;
        assert_eq!(said(7), said(7));
        assert_ne!(said(7), said(8));
    }

    #[test]
    fn a_stop_takes_everything_back() {
        for seed in 0..40 {
            let mut world = World::new(seed, 5, None, false);
            while world.chaos.troubles.len() < 3 && !world.chaos.coming.is_empty() {
                let (now, seats) = (world.now, world.seats());
                let orders = world.chaos.step(now, &seats);
                world.obey(orders);
                world.now += STEP;
            }
            let orders = world.chaos.stop();
            world.obey(orders);
            assert!(world.chaos.is_over() && world.dead.is_empty() && world.paused.is_empty(), "seed {seed}");
            assert!((0..25).all(|link| world.chaos.link(link / 5, link % 5) == Link::default()), "seed {seed}");
        }
    }

    #[test]
    fn only_what_can_be_done_here_is_accepted() {
        let words = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<String>>();
        assert_eq!(kinds(&[], false).unwrap().len(), 3);
        assert_eq!(kinds(&words("all"), true).unwrap().len(), 5);
        assert_eq!(kinds(&words("pause,delay"), true).unwrap(), BTreeSet::from([Kind::Pause, Kind::Delay]));
        assert_eq!(kinds(&words("pause,delay"), false).unwrap_err(), NO_RELAYS);
        assert!(kinds(&words("compact"), true).unwrap_err().contains("cannot be done"));
        assert!(kinds(&words("earthquake"), true).unwrap_err().contains("\"earthquake\""));
    }

    #[test]
    fn whoever_leads_is_hit_and_those_after_him() {
        let mut seats = World::new(1, 3, None, false).seats();
        seats[0].role = Some(Role::Follower);
        seats[2].role = Some(Role::Leader);
        assert_eq!(meant(Whom::Leader { count: 2 }, &seats), [2, 0]);
        assert_eq!(meant(Whom::Member { first: 1, count: 9 }, &seats), [1, 2, 0]);
        seats[2].role = None;
        assert_eq!(meant(Whom::Leader { count: 1 }, &seats), [0]);
    }
}
