//! Faults of the links between members: partition, delay, loss, silence, a narrow line, and their end.
//!
//! ```text
//!  # @m1 relay=11001:11002        m2 dials 11001, which m1 advertises; m1 listens on 11002
//!  words ─▶ LinkCommand ─▶ LinkRequest ─ socket ─▶ Links::apply ─▶ faults::network (one relay a member)
//! ```
//!
//! Who dials a relay is told by the kernel: the socket's owner is in the process group of one of our members. So it works
//! under TLS, too, and for members that join later.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use crate::common::go_duration;
use crate::common::os_reason::os_reason;
use crate::faults::network::Diallers;
use crate::faults::network::Link;
use crate::faults::network::Network;
use crate::faults::owner;
use crate::supervisor::control::vocabulary::Handle;
use crate::supervisor::procfile::Pragma;
use crate::supervisor::procinfo::Listeners;

/// The setting of a process by which it has a relay.
const SETTING: &str = "relay=";
/// What is said where there are no relays.
pub const NO_RELAYS: &str = "no links can be changed here: no process has a relay (`quorate cluster --proxy-peers` writes a Procfile with relays)";
/// Longer delays are typing mistakes.
const DELAY_MAX: Duration = Duration::from_secs(3600);

/// A relay in front of a member's peer port, both on 127.0.0.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    pub name: String,
    /// What the member advertises.
    pub listen: u16,
    /// Where the member listens.
    pub target: u16,
}

/// The relays that the settings of a Procfile ask for: `@m1 ... relay=LISTEN:TARGET`.
pub fn relays(pragmas: &[Pragma]) -> Result<Vec<Relay>, String> {
    let mut relays: Vec<Relay> = Vec::new();
    for pragma in pragmas {
        let mut words = pragma.text.trim_start_matches('@').split_whitespace();
        let name = words.next().unwrap_or_default();
        for value in words.filter_map(|word| word.strip_prefix(SETTING)) {
            let ports = value.split_once(':').and_then(|(listen, target)| Some((port(listen)?, port(target)?)));
            let (listen, target) = ports
                .ok_or_else(|| format!("{}: {SETTING}{value}: two ports are expected, LISTEN:TARGET", pragma.at))?;
            if let Some(other) = relays.iter().find(|other| other.name == name || other.listen == listen) {
                return Err(format!("{}: {SETTING}{value}: {} has that relay already", pragma.at, other.name));
            }
            relays.push(Relay { name: name.to_owned(), listen, target });
        }
    }
    Ok(relays)
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

/// What is to be done to links, as the socket carries it. Empty lists of names stand for all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "link")]
pub enum LinkRequest {
    /// Members of different sides do not reach each other; one side alone is cut off from all others. `silent` loses what
    /// is sent instead of refusing connections. Takes the place of an earlier partition.
    Partition {
        sides: Vec<Vec<String>>,
        #[serde(default)]
        silent: bool,
    },
    /// Everything passes again, on all links or on those of these members.
    Heal {
        #[serde(default)]
        names: Vec<String>,
    },
    Delay {
        millis: u64,
        #[serde(default)]
        jitter_millis: u64,
        #[serde(default)]
        from: Vec<String>,
        #[serde(default)]
        to: Vec<String>,
    },
    Drop {
        percent: u8,
        #[serde(default)]
        from: Vec<String>,
        #[serde(default)]
        to: Vec<String>,
    },
    /// Connections stay, and nothing that is sent arrives.
    Blackhole {
        #[serde(default)]
        from: Vec<String>,
        #[serde(default)]
        to: Vec<String>,
    },
    /// 0 is no limit.
    Throttle {
        bytes_per_second: u64,
        #[serde(default)]
        from: Vec<String>,
        #[serde(default)]
        to: Vec<String>,
    },
    /// Changes nothing: how the links are.
    Show,
}

impl LinkRequest {
    /// Replaces every list of names by what `resolve` makes of it: patterns and roles become names.
    pub fn resolve<E>(&mut self, mut resolve: impl FnMut(&[String]) -> Result<Vec<String>, E>) -> Result<(), E> {
        for names in self.names_mut().into_iter().filter(|names| !names.is_empty()) {
            *names = resolve(names)?;
        }
        Ok(())
    }

    /// Every word that names members.
    pub fn names(&self) -> Vec<String> {
        self.clone().names_mut().into_iter().flat_map(|names| names.clone()).collect()
    }

    /// The same, to be replaced.
    pub fn names_mut(&mut self) -> Vec<&mut Vec<String>> {
        match self {
            LinkRequest::Partition { sides, .. } => sides.iter_mut().collect(),
            LinkRequest::Heal { names } => vec![names],
            LinkRequest::Delay { from, to, .. }
            | LinkRequest::Drop { from, to, .. }
            | LinkRequest::Blackhole { from, to }
            | LinkRequest::Throttle { from, to, .. } => vec![from, to],
            LinkRequest::Show => Vec::new(),
        }
    }
}

impl fmt::Display for LinkRequest {
    /// As the user would type it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ends = |from: &[String], to: &[String]| match (from.is_empty(), to.is_empty()) {
            (true, true) => String::new(),
            (_, true) => format!(" {}", from.join(",")),
            (true, false) => format!(" all {}", to.join(",")),
            (false, false) => format!(" {} {}", from.join(","), to.join(",")),
        };
        match self {
            LinkRequest::Partition { sides, silent } => {
                let sides: Vec<String> = sides.iter().map(|side| side.join(",")).collect();
                let silent = if *silent { " --silent" } else { "" };
                write!(f, "partition {}{silent}", sides.join(" | "))
            }
            LinkRequest::Heal { names } => write!(f, "heal{}", ends(names, &[])),
            LinkRequest::Delay { millis, jitter_millis: 0, from, to } => {
                write!(f, "delay {millis}ms{}", ends(from, to))
            }
            LinkRequest::Delay { millis, jitter_millis, from, to } => {
                write!(f, "delay {millis}ms±{jitter_millis}ms{}", ends(from, to))
            }
            LinkRequest::Drop { percent, from, to } => write!(f, "drop {percent}%{}", ends(from, to)),
            LinkRequest::Blackhole { from, to } => write!(f, "blackhole{}", ends(from, to)),
            LinkRequest::Throttle { bytes_per_second, from, to } => {
                write!(f, "throttle {bytes_per_second}{}", ends(from, to))
            }
            LinkRequest::Show => f.write_str("links"),
        }
    }
}

/// The words on the command line.
#[derive(Clone, Debug, PartialEq, Eq, clap::Subcommand)]
pub enum LinkCommand {
    /// Cut members off from each other: partition m1 '|' m2,m3; one side alone is cut off from all others
    Partition {
        /// Names, patterns or roles, with '|' between the sides
        #[arg(required = true, value_name = "SIDE")]
        words: Vec<String>,
        /// What is sent vanishes, as behind a pulled cable; else connections end and are refused
        #[arg(long)]
        silent: bool,
    },
    /// Let everything pass again between members, or between these and all others
    Heal {
        #[arg(value_name = "NAME", value_delimiter = ',')]
        names: Vec<String>,
    },
    /// Make what members send each other late: 100ms, or 100ms±50 for a delay that varies; off ends it
    Delay {
        #[arg(value_name = "DELAY[±JITTER]")]
        amount: String,
        #[command(flatten)]
        ends: Ends,
    },
    /// Lose so much of what members send each other: it is sent again, and so comes late (TCP shows no loss); 0% ends it
    Drop {
        #[arg(value_name = "PERCENT")]
        amount: String,
        #[command(flatten)]
        ends: Ends,
    },
    /// Let nothing arrive, while connections stay open
    Blackhole {
        #[command(flatten)]
        ends: Ends,
    },
    /// Limit the bytes a second between members: 64K, 1M; off ends it
    Throttle {
        #[arg(value_name = "BYTES")]
        amount: String,
        #[command(flatten)]
        ends: Ends,
    },
    /// Show how the links between members are
    Links,
}

/// Which links: one way, from the first to the second.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Ends {
    /// Who sends: names, patterns or roles, separated by commas [default: all]
    #[arg(value_name = "FROM")]
    pub from: Option<String>,
    /// Who is sent to [default: all]
    #[arg(value_name = "TO")]
    pub to: Option<String>,
}

impl Ends {
    fn from(&self) -> Vec<String> {
        split_names(self.from.as_deref().unwrap_or_default())
    }

    fn to(&self) -> Vec<String> {
        split_names(self.to.as_deref().unwrap_or_default())
    }
}

/// The names of a comma list; `all` is everyone, as nothing is.
fn split_names(text: &str) -> Vec<String> {
    let names: Vec<String> =
        text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if names.iter().any(|name| name == "all") { Vec::new() } else { names }
}

impl LinkCommand {
    /// What was meant; the error is a sentence.
    pub fn request(&self) -> Result<LinkRequest, String> {
        Ok(match self {
            LinkCommand::Partition { words, silent } => {
                LinkRequest::Partition { sides: sides(words)?, silent: *silent }
            }
            LinkCommand::Heal { names } => LinkRequest::Heal { names: split_names(&names.join(",")) },
            LinkCommand::Delay { amount, ends } => {
                let (delay, jitter) = delay(amount)?;
                LinkRequest::Delay { millis: delay, jitter_millis: jitter, from: ends.from(), to: ends.to() }
            }
            LinkCommand::Drop { amount, ends } => {
                LinkRequest::Drop { percent: percent(amount)?, from: ends.from(), to: ends.to() }
            }
            LinkCommand::Blackhole { ends } => LinkRequest::Blackhole { from: ends.from(), to: ends.to() },
            LinkCommand::Throttle { amount, ends } => {
                LinkRequest::Throttle { bytes_per_second: rate(amount)?, from: ends.from(), to: ends.to() }
            }
            LinkCommand::Links => LinkRequest::Show,
        })
    }
}

/// `m1 | m2,m3`, in one word or in several.
fn sides(words: &[String]) -> Result<Vec<Vec<String>>, String> {
    let sides: Vec<Vec<String>> = words.join(",").split('|').map(split_names).collect();
    match sides.iter().any(Vec::is_empty) {
        true => Err("each side of a partition names members: partition m1 '|' m2,m3".to_owned()),
        false => Ok(sides),
    }
}

/// Delay and jitter in milliseconds: `100ms`, `100ms±50`, `100ms±50ms`, `100ms+-50`.
fn delay(text: &str) -> Result<(u64, u64), String> {
    if is_off(text) {
        return Ok((0, 0));
    }
    let (delay, jitter) = text.split_once('±').or_else(|| text.split_once("+-")).unwrap_or((text, "0"));
    let millis = |text: &str| {
        let text = text.trim();
        // A plain number is milliseconds.
        let duration = match text.parse::<u64>() {
            Ok(millis) => Some(Duration::from_millis(millis)),
            Err(_) => go_duration::parse(text).ok(),
        };
        let duration = duration.filter(|duration| *duration <= DELAY_MAX);
        duration.and_then(|duration| u64::try_from(duration.as_millis()).ok())
    };
    millis(delay)
        .zip(millis(jitter))
        .ok_or_else(|| format!("\"{text}\" is no delay of at most an hour, such as 100ms or 100ms±50"))
}

fn percent(text: &str) -> Result<u8, String> {
    if is_off(text) {
        return Ok(0);
    }
    let number = text.strip_suffix('%').unwrap_or(text).parse::<u8>().ok().filter(|percent| *percent <= 100);
    number.ok_or_else(|| format!("\"{text}\" is not a number from 0% to 100%"))
}

/// Bytes a second: `500`, `64K`, `1M`, `1MiB/s`; 1024 are a K.
fn rate(text: &str) -> Result<u64, String> {
    if is_off(text) {
        return Ok(0);
    }
    let whole = text.trim_end_matches("/s");
    let digits = whole.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(whole.len());
    let (number, unit) = whole.split_at(digits);
    let shift = match unit.trim_end_matches("iB").trim_end_matches('B') {
        "" => Some(0),
        "k" | "K" => Some(10),
        "m" | "M" => Some(20),
        "g" | "G" => Some(30),
        _ => None,
    };
    let bytes = number.parse::<u64>().ok().zip(shift).and_then(|(number, shift)| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| format!("\"{text}\" is no number of bytes a second, such as 64K or 1M"))
}

fn is_off(text: &str) -> bool {
    matches!(text, "off" | "none" | "0")
}

/// The relays of a running stack. Clones share them; the last one ends them.
#[derive(Clone)]
pub struct Links(Arc<Inner>);

struct Inner {
    names: Vec<String>,
    network: Network,
    state: Mutex<State>,
}

/// What users have asked for, and what a chaos run lays on top of it.
struct State {
    asked: Matrix,
    chaos: Matrix,
}

impl State {
    fn link(&self, from: usize, to: usize) -> Link {
        let (asked, chaos) = (self.asked.link(from, to), self.chaos.link(from, to));
        Link {
            cut: asked.cut || chaos.cut,
            held: asked.held || chaos.held,
            delay: asked.delay.max(chaos.delay),
            ..asked
        }
    }
}

impl Links {
    /// Listens for every relay. `handle` knows which process group is which member.
    pub async fn start(relays: &[Relay], handle: Handle) -> Result<Links, String> {
        let names: Vec<String> = relays.iter().map(|relay| relay.name.clone()).collect();
        if let Some(relay) = relays.iter().find(|relay| !crate::faults::ports::is_free(relay.listen)) {
            let wanted = SocketAddr::from(([127, 0, 0, 1], relay.listen));
            let owner = Listeners::read().owner(wanted).map(|owner| owner.to_string());
            let owner = owner.unwrap_or_else(|| format!("{wanted} is in use"));
            return Err(format!("the relay of {} cannot listen: {owner}", relay.name));
        }
        let ports: Vec<(u16, u16)> = relays.iter().map(|relay| (relay.listen, relay.target)).collect();
        let diallers = diallers(names.clone(), handle);
        let network = Network::start_asking(&ports, Some(diallers)).await;
        let network = network.map_err(|error| format!("the relays cannot listen: {}", os_reason(&error)))?;
        let nothing = Matrix::new(names.len());
        let state = Mutex::new(State { asked: nothing.clone(), chaos: nothing });
        Ok(Links(Arc::new(Inner { names, network, state })))
    }

    /// Members that have a relay, in the order of the Procfile.
    pub fn names(&self) -> &[String] {
        &self.0.names
    }

    /// Does what is asked: a sentence on what is so now, or on why nothing was done.
    pub async fn apply(&self, request: LinkRequest) -> Result<String, String> {
        let names = &self.0.names;
        let mut state = self.lock();
        if let Some(changed) = state.asked.change(&request, names)? {
            state.asked = changed;
            self.0.network.set(|from, to| state.link(from, to));
        }
        Ok(match request {
            LinkRequest::Show => state.asked.text(names),
            request => request.to_string(),
        })
    }

    /// Lays faults over what users have asked for: `of(from, to)`, members by their place in `names`. The next call takes
    /// the place of this one.
    pub fn overlay(&self, of: impl Fn(usize, usize) -> Link) {
        let mut state = self.lock();
        state.chaos.each(|from, to, link| *link = of(from, to));
        self.0.network.set(|from, to| state.link(from, to));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds members by the process groups that the loop has now.
fn diallers(names: Vec<String>, handle: Handle) -> Diallers {
    let names = Arc::new(names);
    Arc::new(move |dialler: SocketAddr| {
        let (names, handle) = (names.clone(), handle.clone());
        Box::pin(async move {
            let views = handle.views().await.ok()?;
            let groups: Vec<(i32, usize)> = views
                .iter()
                .filter_map(|view| Some((view.group?, names.iter().position(|name| *name == view.name)?)))
                .collect();
            let ids: Vec<i32> = groups.iter().map(|(group, _)| *group).collect();
            // It reads files of the kernel's: not for the thread of the loop.
            let found = tokio::task::spawn_blocking(move || owner::group_of(dialler, &ids)).await.ok()??;
            groups.into_iter().find(|(group, _)| *group == found).map(|(_, member)| member)
        })
    })
}

/// How every link is, `from * size + to`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Matrix {
    size: usize,
    links: Vec<Link>,
}

impl Matrix {
    fn new(size: usize) -> Matrix {
        Matrix { size, links: vec![Link::default(); size * size] }
    }

    fn link(&self, from: usize, to: usize) -> Link {
        self.links[from * self.size + to]
    }

    /// The links after a request; `None` if it asks for no change.
    fn change(&self, request: &LinkRequest, names: &[String]) -> Result<Option<Matrix>, String> {
        let place = |name: &String| {
            let unknown = || format!("{name} has no relay; there are relays of {}", names.join(", "));
            names.iter().position(|known| known == name).ok_or_else(unknown)
        };
        let places = |names: &[String]| names.iter().map(place).collect::<Result<Vec<usize>, String>>();
        let mut changed = self.clone();
        match request {
            LinkRequest::Show => return Ok(None),
            LinkRequest::Partition { sides, silent } => {
                let mut side_of: Vec<Option<usize>> = vec![None; self.size];
                for (number, side) in sides.iter().enumerate() {
                    for member in places(side)? {
                        if side_of[member].replace(number).is_some_and(|earlier| earlier != number) {
                            return Err(format!("{} cannot be on two sides of a partition", names[member]));
                        }
                    }
                }
                if sides.len() == 1 {
                    side_of.iter_mut().for_each(|side| *side = side.or(Some(1)));
                }
                if side_of.iter().flatten().collect::<std::collections::BTreeSet<_>>().len() < 2 {
                    return Err("a partition has members on both sides".to_owned());
                }
                changed.each(|from, to, link| {
                    let apart = matches!((side_of[from], side_of[to]), (Some(one), Some(other)) if one != other);
                    link.cut = apart && !silent;
                    link.held = apart && *silent;
                });
            }
            LinkRequest::Heal { names } => {
                let healed = places(names)?;
                let concerned = |end: usize| healed.is_empty() || healed.contains(&end);
                changed.each(|from, to, link| {
                    if concerned(from) || concerned(to) {
                        *link = Link::default();
                    }
                });
            }
            LinkRequest::Delay { millis, jitter_millis, from, to } => {
                let (delay, jitter) = (Duration::from_millis(*millis), Duration::from_millis(*jitter_millis));
                if delay.max(jitter) > DELAY_MAX {
                    return Err("a delay is at most an hour".to_owned());
                }
                changed.between(&places(from)?, &places(to)?, |link| (link.delay, link.jitter) = (delay, jitter));
            }
            LinkRequest::Drop { percent, from, to } => {
                let percent = *percent;
                if percent > 100 {
                    return Err(format!("{percent}% is more than everything"));
                }
                changed.between(&places(from)?, &places(to)?, |link| link.loss_percent = percent);
            }
            LinkRequest::Blackhole { from, to } => {
                changed.between(&places(from)?, &places(to)?, |link| link.held = true);
            }
            LinkRequest::Throttle { bytes_per_second, from, to } => {
                let rate = *bytes_per_second;
                changed.between(&places(from)?, &places(to)?, |link| link.rate = rate);
            }
        }
        Ok(Some(changed))
    }

    fn each(&mut self, mut change: impl FnMut(usize, usize, &mut Link)) {
        for from in 0..self.size {
            for to in (0..self.size).filter(|to| *to != from) {
                change(from, to, &mut self.links[from * self.size + to]);
            }
        }
    }

    /// The links from one of these to one of those; no members are all of them.
    fn between(&mut self, from: &[usize], to: &[usize], mut change: impl FnMut(&mut Link)) {
        let among = |members: &[usize], member: usize| members.is_empty() || members.contains(&member);
        self.each(|sender, receiver, link| {
            if among(from, sender) && among(to, receiver) {
                change(link);
            }
        });
    }

    /// One line a link that is not as it should be.
    fn text(&self, names: &[String]) -> String {
        let mut text = String::new();
        self.clone().each(|from, to, link| {
            if *link != Link::default() {
                text.push_str(&format!("{} -> {}: {link}\n", names[from], names[to]));
            }
        });
        if text.is_empty() { "everything passes\n".to_owned() } else { text }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::supervisor::procfile::Line;

    #[derive(Parser)]
    struct Typed {
        #[command(subcommand)]
        link: LinkCommand,
    }

    fn request(line: &str) -> Result<LinkRequest, String> {
        let words = std::iter::once("supervisor").chain(line.split(' '));
        Typed::try_parse_from(words).map_err(|error| error.to_string())?.link.request()
    }

    fn names() -> Vec<String> {
        ["a", "b", "c"].map(str::to_owned).to_vec()
    }

    /// What `links` shows after these commands.
    fn after(lines: &[&str]) -> Result<String, String> {
        let mut matrix = Matrix::new(3);
        for line in lines {
            if let Some(changed) = matrix.change(&request(line)?, &names())? {
                matrix = changed;
            }
        }
        Ok(matrix.text(&names()))
    }

    #[test]
    fn commands_say_what_they_were_understood_as() {
        let check = |line: &str, understood: &str| assert_eq!(request(line).unwrap().to_string(), understood, "{line}");
        check("partition a | b,c", "partition a | b,c");
        check("partition a|b c --silent", "partition a | b,c --silent");
        check("partition leader", "partition leader");
        check("heal", "heal");
        check("heal a,b", "heal a,b");
        check("delay 100ms±50", "delay 100ms±50ms");
        check("delay 1s+-200ms a b,c", "delay 1000ms±200ms a b,c");
        check("delay off all b", "delay 0ms all b");
        check("drop 10% a", "drop 10% a");
        check("drop 5", "drop 5%");
        check("blackhole a b", "blackhole a b");
        check("throttle 1M", "throttle 1048576");
        check("throttle 64KiB/s a", "throttle 65536 a");
        check("links", "links");
    }

    #[test]
    fn amounts_that_are_none_are_refused() {
        for line in [
            "delay soon",
            "delay 2h",
            "delay 1s±x",
            "drop 101%",
            "drop -1",
            "drop x%",
            "throttle fast",
            "throttle 1T",
            "throttle 99999999999G",
            "partition |",
            "partition a|",
            "partition",
        ] {
            assert!(request(line).is_err(), "{line}");
        }
    }

    #[test]
    fn requests_travel_as_json_and_names_are_resolved_in_all_places() {
        for line in ["partition a | b,c", "heal", "delay 5ms±1 a", "drop 5% a b", "blackhole", "throttle 1K", "links"]
        {
            let sent = request(line).unwrap();
            let text = serde_json::to_string(&sent).unwrap();
            assert_eq!(serde_json::from_str::<LinkRequest>(&text).unwrap(), sent, "{text}");
        }
        assert!(serde_json::from_str::<LinkRequest>("{\"link\":\"drop\",\"percent\":1000}").is_err());
        let mut partition = request("partition leader | followers").unwrap();
        let resolve = |names: &[String]| match names[0].as_str() {
            "leader" => Ok(vec!["a".to_owned()]),
            "followers" => Ok(vec!["b".to_owned(), "c".to_owned()]),
            other => Err(other.to_owned()),
        };
        partition.resolve(resolve).unwrap();
        assert_eq!(partition.to_string(), "partition a | b,c");
        assert_eq!(partition.names(), ["a", "b", "c"]);
    }

    #[test]
    fn a_partition_cuts_its_sides_apart_and_nothing_else() {
        let text = "a -> b: cut\na -> c: cut\nb -> a: cut\nc -> a: cut\n";
        assert_eq!(after(&["partition a | b,c"]).unwrap(), text);
        assert_eq!(after(&["partition a"]).unwrap(), text);
        assert_eq!(after(&["partition b | c", "partition a"]).unwrap(), text);
        assert_eq!(after(&["partition a | b --silent"]).unwrap(), "a -> b: silent\nb -> a: silent\n");
        assert_eq!(after(&["partition a", "heal"]).unwrap(), "everything passes\n");
        assert_eq!(after(&["partition a | b | c", "heal a"]).unwrap(), "b -> c: cut\nc -> b: cut\n");
        assert_eq!(after(&["partition a | b,a"]).unwrap_err(), "a cannot be on two sides of a partition");
        assert_eq!(after(&["partition a,b,c"]).unwrap_err(), "a partition has members on both sides");
        assert_eq!(after(&["partition a | d"]).unwrap_err(), "d has no relay; there are relays of a, b, c");
    }

    #[test]
    fn faults_of_one_link_add_up_and_end_one_by_one() {
        let lines = ["delay 100ms±50 a b", "drop 10% a b", "throttle 1K a", "blackhole c a", "links"];
        assert_eq!(
            after(&lines).unwrap(),
            "a -> b: delay 100ms±50ms, drop 10%, throttle 1024B/s\na -> c: throttle 1024B/s\nc -> a: silent\n"
        );
        let ended = ["delay off", "drop 0%", "throttle off", "heal c"];
        let all: Vec<&str> = lines.into_iter().chain(ended).collect();
        assert_eq!(after(&all).unwrap(), "everything passes\n");
        assert_eq!(after(&["partition a", "delay 1s b c"]).unwrap().matches("delay").count(), 1);
    }

    #[test]
    fn relays_are_read_from_the_settings_and_wrong_ones_have_a_line() {
        let pragma = |number: usize, text: &str| Pragma { at: Line { file: "P".into(), number }, text: text.into() };
        let found = relays(&[pragma(1, "@m1 ready=sd-notify relay=11:12"), pragma(2, "@m2 stop=INT")]).unwrap();
        assert_eq!(found, [Relay { name: "m1".into(), listen: 11, target: 12 }]);
        for wrong in ["relay=11", "relay=0:5", "relay=11:99999", "relay=a:b"] {
            let error = relays(&[pragma(7, &format!("@m1 {wrong}"))]).unwrap_err();
            assert!(error.starts_with("P:7: ") && error.contains(wrong), "{error}");
        }
        assert!(relays(&[pragma(1, "@m1 relay=1:2"), pragma(2, "@m2 relay=1:3")]).unwrap_err().starts_with("P:2: "));
    }
}
