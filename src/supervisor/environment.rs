//! What children find in their environment beside what we were started with: `.env` files, and ourselves on the PATH.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;

use crate::common::os_reason::os_reason;
use crate::program::Manner;
use crate::supervisor::dotenv;

/// Programs that we offer under their name where the machine has none.
const OFFERED: [&str; 3] = ["etcd", "etcdctl", "goreman"];

/// Pairs from the comma list of env files, without those that the process environment has already.
///
/// goreman's rules (supervisor.md 1.7): the first file wins, and the first file that is missing or does not parse ends
/// the loading without a word. Natively only a missing default file is passed over; anything else is an error.
pub fn load(list: &str, manner: Manner, is_set: &dyn Fn(&str) -> bool) -> Result<BTreeMap<String, String>, String> {
    let mut pairs = BTreeMap::new();
    if list.is_empty() {
        return Ok(pairs);
    }
    for name in list.split(',') {
        let parsed = match std::fs::read(name) {
            Ok(bytes) => dotenv::parse(&String::from_utf8_lossy(&bytes)).map_err(|error| format!("{name}: {error}")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && list == ".env" => return Ok(pairs),
            Err(error) => Err(format!("open {name}: {}", os_reason(&error))),
        };
        match (parsed, manner) {
            (Ok(found), _) => {
                for (key, value) in found {
                    if !is_set(&key) {
                        pairs.entry(key).or_insert(value);
                    }
                }
            }
            (Err(_), Manner::Original) => return Ok(pairs),
            (Err(error), Manner::Native) => return Err(error),
        }
    }
    Ok(pairs)
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
    fn the_environment_wins_then_the_first_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_string_lossy().into_owned()
        };
        let (one, two, bad) = (file("one", "A=1\nB=1\n"), file("two", "B=2\nC=2\n"), file("bad", "nonsense\n"));
        let set = |key: &str| key == "A";
        let found = load(&format!("{one},{two}"), Manner::Native, &set).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [("B".into(), "1".into()), ("C".into(), "2".into())]);
        let stopped = load(&format!("{bad},{two}"), Manner::Original, &set).unwrap();
        assert!(stopped.is_empty(), "goreman stops at the first bad file without a word");
        let error = load(&format!("{bad},{two}"), Manner::Native, &set).unwrap_err();
        assert!(error.starts_with(&bad), "{error}");
        assert!(load("/nowhere/.env", Manner::Native, &set).is_err());
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
