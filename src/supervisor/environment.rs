//! What children find in their environment beside what we were started with: `.env` files, and ourselves on the PATH.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;

use crate::common::os_reason::os_reason;
use crate::supervisor::dotenv;

/// Programs that we offer under their name where the machine has none.
const OFFERED: [&str; 3] = ["etcd", "etcdctl", "goreman"];

/// The env file that is read when none is named, if it is there.
pub const DEFAULT_FILE: &str = ".env";

/// What env files give, natively.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    pub pairs: BTreeMap<String, String>,
    /// Files that were named and are not there.
    pub missing: Vec<String>,
}

/// Pairs from the comma list of env files, without those that the process environment has already.
///
/// goreman's rules (supervisor.md 1.7): the first file wins, and the first file that is missing or does not parse ends
/// the loading without a word.
pub fn load_as_goreman(list: &str, is_set: &dyn Fn(&str) -> bool) -> BTreeMap<String, String> {
    let mut pairs = BTreeMap::new();
    for name in list.split(',').filter(|name| !name.is_empty()) {
        let Some(found) =
            std::fs::read(name).ok().and_then(|bytes| dotenv::parse(&String::from_utf8_lossy(&bytes)).ok())
        else {
            return pairs;
        };
        for (key, value) in found.into_iter().filter(|(key, _)| !is_set(key)) {
            pairs.entry(key).or_insert(value);
        }
    }
    pairs
}

/// The pairs of files, where a later file wins over an earlier one, and `$NAME` stands for an earlier pair, then for what
/// `outer` knows. A file that is not there gives nothing; one that cannot be read or parsed is an error with its line.
pub fn load_files(names: &[String], outer: dotenv::Outer) -> Result<Loaded, String> {
    let mut loaded = Loaded::default();
    for name in names {
        let bytes = match std::fs::read(name) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if name != DEFAULT_FILE {
                    loaded.missing.push(name.clone());
                }
                continue;
            }
            Err(error) => return Err(format!("open {name}: {}", os_reason(&error))),
        };
        let earlier = |key: &str| loaded.pairs.get(key).cloned().or_else(|| outer(key));
        let found = dotenv::parse_within(&String::from_utf8_lossy(&bytes), &earlier);
        let found = found.map_err(|error| format!("{name}:{}: {}", error.line, error.what))?;
        loaded.pairs.extend(found);
    }
    Ok(loaded)
}

/// A private directory with links to ourselves, for Procfiles that were written for programs this machine lacks.
#[derive(Debug)]
pub struct Links {
    pub dir: PathBuf,
}

impl Links {
    /// Makes the links that are missing on `path`; `None` when nothing is.
    pub fn make(program: &Path, path: &str) -> std::io::Result<Option<Links>> {
        let missing: Vec<&str> = OFFERED.into_iter().filter(|name| !is_on_path(name, path)).collect();
        if missing.is_empty() {
            return Ok(None);
        }
        let dir = std::env::temp_dir().join(format!("quorate-{}", std::process::id()));
        // Left behind by a process that had our pid before.
        let _ = std::fs::remove_dir_all(&dir);
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&dir)?;
        let links = Links { dir };
        for name in missing {
            std::os::unix::fs::symlink(program, links.dir.join(name))?;
        }
        Ok(Some(links))
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The children's PATH: what we have, then our own directory, then the links.
pub fn search_path(path: &str, program: &Path, links: Option<&Links>) -> String {
    let own = program.parent().map(|dir| dir.to_string_lossy().into_owned());
    let links = links.map(|links| links.dir.to_string_lossy().into_owned());
    let parts = std::iter::once(path.to_owned()).chain(own).chain(links);
    parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(":")
}

fn is_on_path(name: &str, path: &str) -> bool {
    path.split(':').filter(|dir| !dir.is_empty()).any(|dir| Path::new(dir).join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_wins_then_goremans_first_file_or_our_last() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_string_lossy().into_owned()
        };
        let (one, two) = (file("one", "A=1\nB=1\n"), file("two", "B=2\nC=${B}2\n"));
        let bad = file("bad", "A=1\nnonsense\n");
        let set = |key: &str| key == "A";
        let said = |pairs: BTreeMap<String, String>| {
            pairs.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(said(load_as_goreman(&format!("{one},{two}"), &set)), "B=1 C=22");
        let ours = load_files(&[one.clone(), two.clone()], &|_| None).unwrap();
        assert_eq!(said(ours.pairs), "A=1 B=2 C=22");
        let stopped = load_as_goreman(&format!("{bad},{two}"), &set);
        assert!(stopped.is_empty(), "goreman stops at the first bad file without a word");
        let error = load_files(&[one, bad.clone()], &|_| None).unwrap_err();
        assert_eq!(error, format!("{bad}:2: no \"=\" in \"nonsense\""));
    }

    #[test]
    fn a_file_that_is_not_there_gives_nothing_and_is_told_if_it_was_named() {
        let names = ["/nowhere/one.env".to_owned(), DEFAULT_FILE.to_owned()];
        let loaded = load_files(&names, &|_| None).unwrap();
        assert_eq!(loaded.missing, ["/nowhere/one.env"]);
        assert!(load_files(&["/".to_owned()], &|_| None).is_err());
        assert!(load_as_goreman("", &|_| false).is_empty());
    }

    #[test]
    fn a_later_file_knows_the_pairs_of_an_earlier_one_and_the_environment() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        std::fs::write(path("one"), "A=1\n").unwrap();
        std::fs::write(path("two"), "B=$A-$HOME\n").unwrap();
        let loaded =
            load_files(&[path("one"), path("two")], &|name| (name == "HOME").then(|| "/x".to_owned())).unwrap();
        assert_eq!(loaded.pairs["B"], "1-/x");
    }

    #[test]
    fn our_directory_and_links_come_last_on_the_path() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("etcd"), "").unwrap();
        let program = Path::new("/opt/q/quorate");
        let path = dir.path().to_string_lossy().into_owned();
        let links = Links::make(program, &path).unwrap().expect("etcdctl is missing there");
        assert!(!links.dir.join("etcd").exists() && links.dir.join("etcdctl").is_symlink());
        let search = search_path(&path, program, Some(&links));
        assert_eq!(search, format!("{path}:/opt/q:{}", links.dir.display()));
        let gone = links.dir.clone();
        drop(links);
        assert!(!gone.exists());
    }
}
