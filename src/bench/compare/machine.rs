//! What the figures were measured on: without it they cannot be compared with anybody else's.

use std::fmt;
use std::path::Path;

use serde::Serialize;

/// As /proc tells it; what it does not tell is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Machine {
    pub cores: usize,
    pub processor: String,
    pub memory_bytes: u64,
    pub kernel: String,
    /// File system and device of the data directories.
    pub disk: String,
}

impl Machine {
    /// This machine, with data below `dir`.
    pub fn of(dir: &Path) -> Machine {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let dir = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
        Machine {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: field(&read("/proc/cpuinfo"), "model name"),
            memory_bytes: kib(&field(&read("/proc/meminfo"), "MemTotal")) * 1024,
            kernel: format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
            disk: mount_of(&read("/proc/self/mounts"), &dir),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cores, processor, memory_bytes, kernel, disk } = self;
        let gigabytes = *memory_bytes as f64 / 1e9;
        write!(f, "{cores} cores ({processor}), {gigabytes:.1} GB, {kernel}, data on {disk}")
    }
}

/// What stands behind `name` and a colon in the first line that begins so.
fn field(text: &str, name: &str) -> String {
    let values = text.lines().filter_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
    values.map(str::trim).next().unwrap_or_default().to_owned()
}

fn kib(text: &str) -> u64 {
    text.strip_suffix(" kB").and_then(|number| number.trim().parse().ok()).unwrap_or_default()
}

/// File system and device of the mount that `dir` lies in: the longest mount point above it, the last of equal ones.
fn mount_of(mounts: &str, dir: &Path) -> String {
    let entries = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (device, point, system) = (words.next()?, words.next()?, words.next()?);
        dir.starts_with(point).then_some((point.len(), format!("{system} ({device})")))
    });
    entries.max_by_key(|(length, _)| *length).map(|(_, text)| text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_the_innermost_and_the_newest() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp xfs rw 0 0\n";
        let check = |dir: &str, expected: &str| assert_eq!(mount_of(mounts, Path::new(dir)), expected);
        check("/tmp/x", "xfs (/dev/b)");
        check("/tmpx", "ext4 (/dev/a)");
        assert_eq!(mount_of("", Path::new("/")), "");
    }

    #[test]
    fn fields_are_found_by_name() {
        let text = "model name\t: Some CPU\nmodel\t: 1\nMemTotal:   12 kB\n";
        assert_eq!(field(text, "model name"), "Some CPU");
        assert_eq!(kib(&field(text, "MemTotal")), 12);
        assert_eq!(field(text, "absent"), "");
    }

    #[test]
    fn this_machine_says_what_it_is() {
        let machine = Machine::of(&std::env::temp_dir());
        assert!(machine.cores > 0 && machine.memory_bytes > 0 && !machine.disk.is_empty(), "{machine}");
        assert!(machine.to_string().contains("Linux "), "{machine}");
    }
}
