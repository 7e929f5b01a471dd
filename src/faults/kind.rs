//! The faults by name.

use std::collections::BTreeSet;
use std::fmt;

/// What can be done to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// SIGKILL, and a start later.
    Kill,
    /// SIGSTOP, and SIGCONT later.
    Pause,
    /// Peers cannot reach each other, in both directions or in one.
    Partition,
    /// What peers send arrives late.
    Delay,
    /// SIGTERM, and a start later.
    Restart,
    /// Clients compact.
    Compact,
    /// No space is left where a member keeps its data.
    DiskFull,
    /// A member ends, and everything it has not synced is gone.
    PowerCut,
    /// A member is removed and comes back as another with nothing, or changes its address.
    Member,
}

/// Every fault with the name that users write.
pub const KINDS: [(&str, Kind); 9] = [
    ("kill", Kind::Kill),
    ("pause", Kind::Pause),
    ("partition", Kind::Partition),
    ("delay", Kind::Delay),
    ("restart", Kind::Restart),
    ("compact", Kind::Compact),
    ("disk-full", Kind::DiskFull),
    ("power-cut", Kind::PowerCut),
    ("member", Kind::Member),
];

/// Everything that this user may do.
const ALL: &str = "all";

impl Kind {
    /// Whether it takes a file system of its own, which only root may mount.
    pub fn needs_root(self) -> bool {
        matches!(self, Kind::DiskFull | Kind::PowerCut)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = KINDS.iter().find(|(_, kind)| kind == self).map(|(name, _)| *name);
        f.write_str(name.unwrap_or_default())
    }
}

/// Why a list of faults cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KindsError {
    #[error("there is no fault \"{0}\"; there are {names} and {ALL}", names = names())]
    Unknown(String),
    #[error("the fault {0} needs a file system of its own for each member, which only root may mount")]
    NeedsRoot(Kind),
    #[error("no fault is named; there are {names} and {ALL}", names = names())]
    None,
}

fn names() -> String {
    KINDS.map(|(name, _)| name).join(", ")
}

/// The faults of a list such as `kill,pause`; `all` leaves out what only root may do, unless this is root.
pub fn parse(words: &[String], is_root: bool) -> Result<BTreeSet<Kind>, KindsError> {
    let mut kinds = BTreeSet::new();
    for word in words.iter().map(|word| word.trim()).filter(|word| !word.is_empty()) {
        if word == ALL {
            kinds.extend(KINDS.iter().map(|(_, kind)| *kind).filter(|kind| is_root || !kind.needs_root()));
            continue;
        }
        let known = KINDS.iter().find(|(name, _)| *name == word);
        let (_, kind) = known.ok_or_else(|| KindsError::Unknown(word.to_owned()))?;
        if kind.needs_root() && !is_root {
            return Err(KindsError::NeedsRoot(*kind));
        }
        kinds.insert(*kind);
    }
    if kinds.is_empty() { Err(KindsError::None) } else { Ok(kinds) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str, is_root: bool) -> Result<String, String> {
        let words: Vec<String> = text.split(',').map(str::to_owned).collect();
        let kinds = parse(&words, is_root).map_err(|error| error.to_string())?;
        Ok(kinds.iter().map(Kind::to_string).collect::<Vec<_>>().join(","))
    }

    #[test]
    fn names_are_read_and_all_is_what_the_user_may_do() {
        assert_eq!(parsed("pause,kill, kill", false), Ok("kill,pause".to_owned()));
        assert_eq!(parsed("all", false), Ok("kill,pause,partition,delay,restart,compact,member".to_owned()));
        assert_eq!(parsed("all", true).unwrap().split(',').count(), KINDS.len());
    }

    #[test]
    fn what_is_unknown_or_not_allowed_is_refused_by_name() {
        let unknown = parsed("kill,earthquake", true).unwrap_err();
        assert!(unknown.contains("\"earthquake\"") && unknown.contains("kill, pause, partition"), "{unknown}");
        let denied = parsed("power-cut", false).unwrap_err();
        assert!(denied.contains("power-cut") && denied.contains("root"), "{denied}");
        assert!(parsed("", true).is_err());
    }
}
