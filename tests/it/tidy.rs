//! The house rules that a machine can check: who may import whom, how a file opens, what never stands in the code.

use std::path::Path;
use std::path::PathBuf;

/// One row of DESIGN.md 6's import table: files under `part` may not name any of `never`.
struct Rule {
    part: &'static str,
    never: &'static [&'static str],
}

const CORE: [&str; 9] = [
    "tokio",
    "std::net",
    "SystemTime",
    "Instant::now",
    "rand::",
    "hyper",
    "tonic::transport",
    "std::thread",
    "crate::client",
];

const RULES: [Rule; 25] = [
    Rule { part: "common", never: &["redb", "raft::", "tokio::spawn", "crate::server", "crate::client", "crate::ctl"] },
    Rule { part: "disk", never: &["crate::server", "crate::proto", "tokio", "crate::client"] },
    Rule { part: "client", never: &["crate::server", "crate::ctl", "crate::supervisor"] },
    Rule { part: "ctl", never: &["crate::server", "crate::supervisor"] },
    // It works on files: nothing of what makes a node run.
    Rule {
        part: "utl",
        never: &[
            "tokio",
            "std::net",
            "crate::client",
            "crate::supervisor",
            "crate::server::api",
            "crate::server::peer",
            "crate::server::propose",
            "crate::server::duties",
            "crate::server::watch",
            "crate::server::run::member",
            "crate::server::raft::driver",
        ],
    },
    Rule { part: "bench", never: &["crate::server", "crate::ctl", "crate::supervisor"] },
    Rule { part: "faults", never: &["crate::server", "crate::sim", "crate::torture", "crate::supervisor"] },
    Rule { part: "torture", never: &["crate::server", "crate::sim", "crate::bench", "crate::supervisor"] },
    // Time, chance and files come from the run's seed, or two runs of it would differ.
    Rule {
        part: "sim",
        never: &[
            "std::net",
            "std::fs",
            "std::thread",
            "SystemTime",
            "Instant::now",
            "rand::",
            "tokio::time",
            "HashMap",
        ],
    },
    Rule { part: "supervisor", never: &["crate::server", "crate::ctl", "crate::cluster"] },
    Rule { part: "cluster", never: &["crate::server", "crate::ctl", "crate::torture"] },
    Rule { part: "server", never: &["crate::ctl", "crate::supervisor", "crate::client"] },
    Rule {
        part: "server/checkpoint",
        never: &[
            "crate::server::mvcc",
            "crate::server::lease",
            "crate::server::apply",
            "crate::server::api",
            "etcdserverpb",
            "tokio",
        ],
    },
    Rule { part: "server/mvcc", never: &CORE },
    Rule {
        part: "server/mvcc",
        never: &[
            "crate::server::lease",
            "crate::server::cluster",
            "crate::server::apply",
            "crate::server::api",
            "crate::server::raft",
        ],
    },
    Rule { part: "server/lease", never: &CORE },
    Rule {
        part: "server/lease",
        never: &[
            "crate::server::mvcc",
            "crate::server::cluster",
            "crate::server::apply",
            "crate::server::api",
            "crate::server::raft",
        ],
    },
    Rule { part: "server/cluster", never: &CORE },
    Rule {
        part: "server/cluster",
        never: &[
            "crate::server::mvcc",
            "crate::server::lease",
            "crate::server::apply",
            "crate::server::api",
            "crate::server::raft",
        ],
    },
    // Its threads are in one file; the machine in the others knows neither time nor chance.
    Rule {
        part: "server/watch",
        never: &[
            "tokio",
            "std::net",
            "SystemTime",
            "Instant::now",
            "rand::",
            "hyper",
            "crate::server::apply",
            "crate::server::api",
            "crate::server::raft",
        ],
    },
    Rule {
        part: "server/raft",
        never: &["crate::server::mvcc", "crate::server::apply", "crate::server::api", "crate::server::peer", "tokio"],
    },
    Rule { part: "server/peer", never: &["crate::server::mvcc", "crate::server::apply", "crate::server::api"] },
    Rule { part: "server/apply", never: &["tokio", "crate::server::api", "SystemTime", "rand::"] },
    Rule { part: "server/api", never: &["crate::server::raft::node", "redb", "crate::server::checkpoint::store"] },
    Rule {
        part: "server/duties",
        never: &["crate::server::apply::machine", "crate::server::mvcc::store", "crate::server::api"],
    },
];

/// Lines that break a rule for a reason: file, what the line begins with.
const EXCEPTIONS: [(&str, &str); 1] = [
    // The judge needs the order of everything that was committed, which only the members' own logs have; this reads
    // etcd's format, ours and any other member's, and writes nothing.
    ("torture/logs.rs", "use crate::server::raft::wal::committed_entries;"),
];

/// Only these files may name types of the raft library.
const RAFT_FILES: [&str; 4] =
    ["server/raft/convert.rs", "server/raft/log.rs", "server/raft/node.rs", "server/raft/node/"];

/// Two essays in one file: make two files.
const LINES_MAX: usize = 900;

fn sources() -> Vec<(String, String)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    collect(&root, &root, &mut found);
    found.sort();
    assert!(found.len() > 20, "the sources are where this test looks");
    found
}

fn collect(root: &Path, dir: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(dir).expect("a readable source directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(root, &path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
            found.push((name, std::fs::read_to_string(&path).expect("a readable source")));
        }
    }
}

/// The files that are only compiled for tests: those behind a `#[cfg(test)] mod name;`, with everything below them.
struct TestFiles(Vec<PathBuf>);

impl TestFiles {
    fn of(sources: &[(String, String)]) -> TestFiles {
        let mut roots = Vec::new();
        for (name, text) in sources {
            let mut lines = text.lines().map(str::trim);
            while let Some(line) = lines.next() {
                if line != "#[cfg(test)]" {
                    continue;
                }
                let Some(next) = lines.next() else { break };
                let named = next.strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix("\"]"));
                let module =
                    next.trim_start_matches("pub ").strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';'));
                match (named, module) {
                    (Some(file), _) => roots.push(Path::new(name).with_file_name(file)),
                    (_, Some(module)) => roots.push(children_of(Path::new(name)).join(module)),
                    _ => {}
                }
            }
        }
        assert!(roots.len() > 10, "test modules are written as this test reads them");
        TestFiles(roots)
    }

    fn has(&self, name: &str) -> bool {
        let stem = Path::new(name).with_extension("");
        self.0.iter().any(|root| stem.starts_with(root) || Path::new(name) == root)
    }
}

/// The directory in which the modules of this file lie.
fn children_of(file: &Path) -> PathBuf {
    match file.file_stem().is_some_and(|stem| stem == "mod" || stem == "lib" || stem == "main") {
        true => file.parent().expect("a relative path of a file").to_owned(),
        false => file.with_extension(""),
    }
}

/// The part of a file that ships: everything before its tests, comments left out.
fn shipped(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line));
    let code = lines.take_while(|(_, line)| !line.starts_with("#[cfg(test)]"));
    code.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// The sources that ship, as pairs of name and text.
fn shipped_sources() -> Vec<(String, String)> {
    let sources = sources();
    let tests = TestFiles::of(&sources);
    sources.into_iter().filter(|(name, _)| !tests.has(name)).collect()
}

fn report(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn every_file_opens_by_saying_what_it_is_for() {
    let silent = sources().into_iter().filter(|(_, text)| !text.starts_with("//! "));
    report(silent.map(|(name, _)| format!("{name} does not open with `//! `")).collect());
}

#[test]
fn imports_keep_to_the_table() {
    let mut problems = Vec::new();
    for (name, text) in shipped_sources() {
        let rules = RULES.iter().filter(|rule| Path::new(&name).starts_with(rule.part));
        for rule in rules {
            let excepted = |code: &str| EXCEPTIONS.iter().any(|(file, begin)| *file == name && code.starts_with(begin));
            for (line, code) in shipped(&text).filter(|(_, code)| !excepted(code)) {
                for word in rule.never.iter().filter(|word| names(code, word)) {
                    problems.push(format!("{name}:{line} names {word}"));
                }
            }
        }
    }
    report(problems);
}

/// Whether `code` names `word` as a path of its own, not as the tail of a longer one.
fn names(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_' || letter == ':')
    })
}

#[test]
fn only_the_boundary_names_the_raft_library() {
    let mut problems = Vec::new();
    for (name, text) in shipped_sources() {
        if RAFT_FILES.iter().any(|allowed| name.starts_with(allowed)) {
            continue;
        }
        for (line, code) in shipped(&text) {
            if code.trim_start().starts_with("use raft::") || names(code, "raft::eraftpb") {
                problems.push(format!("{name}:{line} names a type of the raft library"));
            }
        }
    }
    report(problems);
}

#[test]
fn nothing_unfinished_and_nothing_that_panics_by_habit() {
    let never = [".unwrap()", "todo!(", "unimplemented!(", "dbg!(", "TODO", "FIXME", "XXX"];
    let mut problems = Vec::new();
    for (name, text) in shipped_sources() {
        for (line, code) in shipped(&text) {
            for word in never.iter().filter(|word| code.contains(**word)) {
                problems.push(format!("{name}:{line} has {word}"));
            }
            if code.trim_start().starts_with("use ") && code.trim_end().ends_with("::*;") {
                problems.push(format!("{name}:{line} imports a glob"));
            }
        }
    }
    for (name, text) in sources() {
        for (at, line) in text.lines().enumerate() {
            if line.contains("#[ignore") || line.contains("allow(dead_code)") {
                problems.push(format!("{name}:{} hides something: {}", at + 1, line.trim()));
            }
        }
    }
    report(problems);
}

#[test]
fn files_stay_readable_in_one_sitting() {
    let long = sources().into_iter().map(|(name, text)| (shipped(&text).count(), name));
    report(
        long.filter(|(lines, _)| *lines > LINES_MAX).map(|(lines, name)| format!("{name}: {lines} lines")).collect(),
    );
}
