//! What a server costs: CPU time and memory of processes, from /proc.

use std::time::Duration;

use nix::unistd::SysconfVar;
use nix::unistd::sysconf;
use serde::Serialize;

use crate::common::procfs;
use crate::common::procfs::Stat;

/// Why a process could not be looked at.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {why}")]
pub struct UsageError {
    path: String,
    why: String,
}

/// One process or the sum of several at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub user: Duration,
    pub system: Duration,
    pub memory: Memory,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Resident now.
    pub resident_bytes: u64,
    /// Of that, what no file holds: a mapped database file is in `resident_bytes` only.
    pub anonymous_bytes: u64,
    /// Resident at its highest.
    pub peak_bytes: u64,
}

impl Reading {
    /// The sum over `pids`.
    pub fn of(pids: &[u32]) -> Result<Reading, UsageError> {
        let mut sum = Reading::default();
        for pid in pids {
            let one = Reading::of_one(*pid)?;
            sum.user += one.user;
            sum.system += one.system;
            sum.memory.resident_bytes += one.memory.resident_bytes;
            sum.memory.anonymous_bytes += one.memory.anonymous_bytes;
            sum.memory.peak_bytes += one.memory.peak_bytes;
        }
        Ok(sum)
    }

    fn of_one(pid: u32) -> Result<Reading, UsageError> {
        let stat = parse_file(format!("/proc/{pid}/stat"), Stat::parse)?;
        let memory = parse_file(format!("/proc/{pid}/status"), memory)?;
        Ok(Reading { user: ticks(stat.user_ticks), system: ticks(stat.system_ticks), memory })
    }

    pub fn cpu(&self) -> Duration {
        self.user + self.system
    }
}

fn parse_file<T>(path: String, parse: fn(&str) -> Option<T>) -> Result<T, UsageError> {
    let text = std::fs::read_to_string(&path).map_err(|error| error.to_string());
    match text.and_then(|text| parse(&text).ok_or_else(|| "not in the form that Linux gives it".to_owned())) {
        Ok(value) => Ok(value),
        Err(why) => Err(UsageError { path, why }),
    }
}

fn memory(status: &str) -> Option<Memory> {
    // A process that has ended but was not waited for has no memory lines.
    let of = |name: &str| procfs::status_number(status, name).unwrap_or(0) * 1024;
    status.starts_with("Name:").then(|| Memory {
        resident_bytes: of("VmRSS"),
        anonymous_bytes: of("RssAnon"),
        peak_bytes: of("VmHWM"),
    })
}

fn ticks(count: u64) -> Duration {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().filter(|ticks| *ticks > 0).unwrap_or(100);
    Duration::from_secs_f64(count as f64 / per_second as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_by_name() {
        let text = "Name:\tetcd\nVmHWM:\t    30 kB\nVmRSS:\t   20 kB\nRssAnon:\t   10 kB\n";
        let expected = Memory { resident_bytes: 20 << 10, anonymous_bytes: 10 << 10, peak_bytes: 30 << 10 };
        assert_eq!(memory(text), Some(expected));
        assert_eq!(memory("Name:\tzombie\n"), Some(Memory::default()));
        assert_eq!(memory(""), None);
    }

    #[test]
    fn our_own_process_can_be_read_and_a_missing_one_is_told() {
        let own = Reading::of(&[std::process::id()]).expect("we run");
        assert!(own.memory.resident_bytes > 0 && own.memory.peak_bytes >= own.memory.anonymous_bytes);
        let error = Reading::of(&[u32::MAX]).expect_err("no such process");
        assert!(error.to_string().starts_with("cannot read /proc/4294967295/stat: "), "{error}");
    }
}
