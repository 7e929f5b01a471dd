//! `--auto-compaction-*`: what history is kept without anybody asking (server.md 3.8, 9.3).

use std::time::Duration;

use crate::common::go_duration;

/// What the leader compacts by itself. Retentions are not zero: that means off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// History of this time is kept.
    Periodic(Duration),
    /// So many revisions are kept.
    Revision(i64),
}

impl AutoCompaction {
    /// `mode` was verified. A plain number is hours or revisions; a duration counts as nanoseconds in revision mode, as in
    /// etcd. A negative retention would compact everything again and again, so it is refused.
    pub fn parse(mode: &str, retention: &str) -> Result<Option<AutoCompaction>, String> {
        let revision = mode == "revision";
        if let Some(number) = retention.parse::<i64>().ok().filter(|number| *number >= 0) {
            return match (number, revision) {
                (0, _) => Ok(None),
                (revisions, true) => Ok(Some(AutoCompaction::Revision(revisions))),
                (hours, false) => {
                    let seconds = u64::try_from(hours).ok().and_then(|hours| hours.checked_mul(3600));
                    let error = || format!("error parsing CompactionRetention: {retention} hours are too many");
                    seconds
                        .map(|seconds| Some(AutoCompaction::Periodic(Duration::from_secs(seconds))))
                        .ok_or_else(error)
                }
            };
        }
        let nanos = go_duration::parse_signed(retention)
            .map_err(|error| format!("error parsing CompactionRetention: {error}"))?;
        match (nanos, revision) {
            (..0, _) => Err(format!("error parsing CompactionRetention: negative retention \"{retention}\"")),
            (0, _) => Ok(None),
            (revisions, true) => Ok(Some(AutoCompaction::Revision(revisions))),
            (nanos, false) => Ok(Some(AutoCompaction::Periodic(Duration::from_nanos(nanos.unsigned_abs())))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retentions_follow_the_mode() {
        let check = |mode: &str, retention: &str, expected: Result<Option<AutoCompaction>, &str>| {
            assert_eq!(AutoCompaction::parse(mode, retention), expected.map_err(str::to_owned), "{mode} {retention}");
        };
        check("periodic", "0", Ok(None));
        check("periodic", "2", Ok(Some(AutoCompaction::Periodic(Duration::from_secs(7200)))));
        check("periodic", "5m", Ok(Some(AutoCompaction::Periodic(Duration::from_secs(300)))));
        check("revision", "1000", Ok(Some(AutoCompaction::Revision(1000))));
        check("revision", "1h", Ok(Some(AutoCompaction::Revision(3_600_000_000_000))));
        check("periodic", "x", Err("error parsing CompactionRetention: time: invalid duration \"x\""));
        check("periodic", "-1h", Err("error parsing CompactionRetention: negative retention \"-1h\""));
    }
}
