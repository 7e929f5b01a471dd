//! What a generated cluster leaves on disk, and what it prints: the Procfile, the lines for `eval`, the JSON.

use std::fs;
use std::path::Path;

use crate::cluster::plan::Plan;
use crate::common::os_reason::os_reason;
use crate::disk::lock::DirLock;

/// By this a directory is known as a member's: nothing else is ever removed.
const MEMBER_DIR: &str = "member";

/// The Procfile of a cluster.
pub fn procfile(plan: &Plan) -> String {
    let count = |learner: bool| plan.members.iter().filter(|member| member.learner == learner).count();
    let learners = match count(true) {
        0 => String::new(),
        learners => format!(" and {learners} without a vote"),
    };
    let mut text = format!(
        "# A cluster of {} voting members{learners} on this machine, written by `quorate cluster`.\n\
         # Clients connect to {}\n",
        count(false),
        plan.endpoints.join(","),
    );
    if plan.members.iter().any(|member| member.relay.is_some()) {
        text.push_str(
            "# Members reach each other through relays of `quorate supervisor`, and by it alone: partition, delay, drop, heal.\n",
        );
    }
    for member in &plan.members {
        let relay = member.relay.map(|(listen, target)| format!(" relay={listen}:{target}")).unwrap_or_default();
        text.push_str(&format!(
            "# @{} ready=sd-notify data-dir={}{relay}\n",
            member.name,
            quoted(&member.data_dir.to_string_lossy())
        ));
        text.push_str(&format!("{}: {}\n", member.name, command_line(&plan.command(member))));
    }
    text
}

/// Words as a shell reads them.
pub fn command_line(words: &[String]) -> String {
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// A word that a shell takes as it stands; in single quotes where it would not.
pub fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "_-./:,=+@%".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Lines for `eval`: where the cluster is, for our own client and for etcd's.
pub fn exports(plan: &Plan) -> String {
    let endpoints = plan.endpoints.join(",");
    let mut pairs = vec![("ENDPOINTS", endpoints.clone()), ("ETCDCTL_ENDPOINTS", endpoints)];
    if !plan.learner_endpoints.is_empty() {
        pairs.push(("LEARNER_ENDPOINTS", plan.learner_endpoints.join(",")));
    }
    if let Some(tls) = &plan.tls {
        // From whatever directory they are used.
        let text = |path: &Path| std::path::absolute(path).unwrap_or(path.to_owned()).to_string_lossy().into_owned();
        pairs.extend([
            ("ETCDCTL_CACERT", text(&tls.ca)),
            ("ETCDCTL_CERT", text(&tls.cert)),
            ("ETCDCTL_KEY", text(&tls.key)),
        ]);
    }
    pairs.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value))).collect()
}

/// Makes sure that nothing is in the way of a new cluster. With `force` an old Procfile and the data of its members go,
/// but not those of a member that runs.
pub fn make_room(procfile: &Path, plan: &Plan, force: bool) -> Result<(), String> {
    if fs::symlink_metadata(procfile).is_ok() && !force {
        return Err(format!(
            "{} is there already; --force replaces it and the data of its members, -f writes another file",
            procfile.display()
        ));
    }
    for member in &plan.members {
        let dir = &member.data_dir;
        let Ok(found) = fs::symlink_metadata(dir) else { continue };
        if !force {
            return Err(format!(
                "{} is there already; --force removes it, --data-root names another place",
                dir.display()
            ));
        }
        if !found.is_dir() || !is_members(dir) {
            return Err(format!("{} is not the data directory of a member: it is left alone", dir.display()));
        }
        let _lock = DirLock::acquire(dir).map_err(|error| format!("{error}: stop that cluster first"))?;
    }
    for member in plan.members.iter().filter(|member| member.data_dir.exists()) {
        let dir = &member.data_dir;
        fs::remove_dir_all(dir).map_err(|error| format!("cannot remove {}: {}", dir.display(), os_reason(&error)))?;
    }
    Ok(())
}

/// What a member has, and what one that never came up has: nothing but its lock.
fn is_members(dir: &Path) -> bool {
    let names = || fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    dir.join(MEMBER_DIR).is_dir() || names().all(|name| name == crate::disk::lock::LOCK_FILE)
}

/// Writes the Procfile whole or not at all.
pub fn write_procfile(path: &Path, text: &str) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot write {}: {}", path.display(), os_reason(&error));
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let written = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, path));
    written.map_err(|error| {
        // Nothing of a file that was not finished stays.
        let _ = fs::remove_file(&fresh);
        failed(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::plan::Wish;

    fn plan(data_root: &Path, proxy_peers: bool, learners: u16, tls: bool) -> Plan {
        let data_root = data_root.to_owned();
        let (program, flags) = (None, vec!["--x=a b".to_owned()]);
        Plan::new(&Wish { voters: 1, learners, base_port: Some(20_000), data_root, proxy_peers, tls, program, flags })
            .unwrap()
    }

    #[test]
    fn the_procfile_is_the_same_each_time() {
        let text = procfile(&plan(Path::new("it's here"), true, 0, false));
        assert_eq!(
            text,
            "# A cluster of 1 voting members on this machine, written by `quorate cluster`.\n\
             # Clients connect to http://127.0.0.1:20000\n\
             # Members reach each other through relays of `quorate supervisor`, and by it alone: partition, delay, drop, heal.\n\
             # @m1 ready=sd-notify data-dir='it'\\''s here/m1' relay=20001:20002\n\
             m1: quorate server --name m1 --data-dir 'it'\\''s here/m1' --listen-client-urls http://127.0.0.1:20000 \
             --advertise-client-urls http://127.0.0.1:20000 --listen-peer-urls http://127.0.0.1:20002 \
             --initial-advertise-peer-urls http://127.0.0.1:20001 --initial-cluster-token quorate-local \
             --initial-cluster m1=http://127.0.0.1:20001 --initial-cluster-state new '--x=a b'\n"
        );
        assert_eq!(text, procfile(&plan(Path::new("it's here"), true, 0, false)));
    }

    #[test]
    fn a_shell_reads_the_exports() {
        let text = exports(&plan(Path::new("/x y"), false, 1, true));
        assert_eq!(
            text,
            "export ENDPOINTS=https://127.0.0.1:20000\nexport ETCDCTL_ENDPOINTS=https://127.0.0.1:20000\n\
             export LEARNER_ENDPOINTS=https://127.0.0.1:20010\nexport ETCDCTL_CACERT='/x y/tls/ca.pem'\n\
             export ETCDCTL_CERT='/x y/tls/client.pem'\nexport ETCDCTL_KEY='/x y/tls/client-key.pem'\n"
        );
        let said =
            std::process::Command::new("sh").args(["-c", &format!("{text} printf %s \"$ETCDCTL_KEY\"")]).output();
        assert_eq!(said.unwrap().stdout, b"/x y/tls/client-key.pem");
    }

    #[test]
    fn only_what_is_a_members_is_removed_and_only_by_force() {
        let temp = tempfile::tempdir().unwrap();
        let (file, plan) = (temp.path().join("Procfile"), plan(temp.path(), false, 0, false));
        make_room(&file, &plan, false).unwrap();
        write_procfile(&file, "a: x\n").unwrap();
        assert!(make_room(&file, &plan, false).unwrap_err().contains("Procfile is there already"));
        make_room(&file, &plan, true).unwrap();
        let dir = &plan.members[0].data_dir;
        fs::create_dir_all(dir.join("member/wal")).unwrap();
        assert!(make_room(&temp.path().join("P2"), &plan, false).unwrap_err().contains("m1 is there already"));
        let lock = DirLock::acquire(dir).unwrap();
        assert!(make_room(&file, &plan, true).unwrap_err().contains("stop that cluster first"));
        drop(lock);
        make_room(&file, &plan, true).unwrap();
        assert!(!dir.exists());
        fs::create_dir_all(dir.join("photos")).unwrap();
        assert!(make_room(&file, &plan, true).unwrap_err().contains("left alone"));
        assert!(dir.join("photos").exists());
    }

    #[test]
    fn a_procfile_that_cannot_be_written_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("dir");
        fs::create_dir_all(path.join("full")).unwrap();
        assert!(write_procfile(&path, "x").is_err());
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
        write_procfile(&temp.path().join("deep/Procfile"), "x").unwrap();
    }
}
