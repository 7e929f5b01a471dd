//! The persistence contract on a real disk that fails: errors, delays, no space, a power cut (reliability.md 3.3, 5.1).
//!
//! The disk's faults come from outside: `strace` makes system calls fail or wait, a small tmpfs is full, an ext4 on a loop
//! device is shut down under its writer. Where a tool or the right to use it is missing, the test says that it is skipped.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::server::run::ends::EXIT_FAILURE;

use crate::cluster::Cluster;
use crate::cluster::Member;
use crate::cluster::Program;
use crate::cluster::tail;
use crate::support::eventually;
use crate::support::skipped;

const LOG: &str = "member/wal/0000000000000000-0000000000000000.wal";
pub const DATABASE: &str = "member/snap/db.redb";

/// strace at a running member, which injects a fault into the system calls on one file; it lets go when dropped.
struct Injection {
    strace: Child,
    /// One line for each call that has come to its end.
    log: PathBuf,
}

impl Injection {
    /// `None`, said aloud, if there is no strace here or it may not trace.
    async fn attach(test: &str, member: &Member, file: &str, fault: &str) -> Option<Injection> {
        if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
            skipped(test, "strace is not installed");
            return None;
        }
        let log = member.data_dir.with_extension("strace");
        let strace = Command::new("strace")
            .args(["-f", "-qq", "-o"])
            .arg(&log)
            .arg("-P")
            .arg(member.data_dir.join(file))
            .args(["-e", "trace=fdatasync", "-e", &format!("inject=fdatasync:{fault}")])
            .args(["-p", &member.pid().to_string()])
            .stderr(Stdio::null())
            .spawn();
        let mut injection = Injection { strace: strace.expect("strace starts"), log };
        let pid = member.pid();
        let strace = std::cell::RefCell::new(&mut injection.strace);
        let holds = eventually("strace to hold every thread", async || {
            let ended = strace.borrow_mut().try_wait().expect("a child of ours").is_some();
            if ended || all_traced(pid) { Ok(!ended) } else { Err(format!("{pid} runs free")) }
        })
        .await;
        if !holds {
            skipped(test, "strace may not trace here");
            return None;
        }
        Some(injection)
    }

    /// Calls that have returned with success. strace writes a call's line before it lets the thread go on.
    fn finished(&self) -> usize {
        let lines = std::fs::read_to_string(&self.log).expect("strace has made its file");
        lines.lines().filter(|line| line.contains("fdatasync") && line.contains(" = 0")).count()
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // SIGTERM, so that it detaches: what it holds must go on.
        let _ = Command::new("kill").arg(self.strace.id().to_string()).status();
        let _ = self.strace.wait();
    }
}

fn all_traced(pid: u32) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    tasks.flatten().all(|task| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    })
}

/// Puts `count` keys; every one must be acknowledged.
pub async fn write(member: &Member, prefix: &str, count: usize) -> BTreeMap<String, i64> {
    let mut acknowledged = BTreeMap::new();
    for number in 0..count {
        let key = format!("{prefix}/{number:04}");
        let revision = member.put(&key, &key).await.unwrap_or_else(|status| panic!("{key}: {status}"));
        acknowledged.insert(key, revision);
    }
    acknowledged
}

async fn all_there(member: &Member, acknowledged: &BTreeMap<String, i64>) {
    for (key, revision) in acknowledged {
        let found = member.get(key).await.expect("a read");
        let found = found.kvs.first().map(|kv| kv.mod_revision);
        assert_eq!(found, Some(*revision), "{key} was acknowledged: {}", tail(&member.log_text(), 20));
    }
}

/// Waits for the end of a member that cannot go on: exit code 74 and a sentence that names the file and the reason.
pub fn ends_with_a_sentence(member: &mut Member, words: &[&str]) {
    let status = member.wait_exit();
    let log = member.log_text();
    assert_eq!(status.code(), Some(i32::from(EXIT_FAILURE)), "{status}: {}", tail(&log, 20));
    let sentence = log.lines().rev().find(|line| words.iter().all(|word| line.contains(word)));
    assert!(sentence.is_some(), "no line has all of {words:?}: {}", tail(&log, 20));
}

/// From now on every fdatasync of `file` fails: the member ends, and has everything acknowledged when it comes back.
async fn sync_error(test: &str, file: &str, name: &str) {
    let mut cluster = Cluster::ours(1, &[]).await;
    let acknowledged = write(&cluster.members[0], "before", 20).await;
    let Some(injection) = Injection::attach(test, &cluster.members[0], file, "error=EIO").await else { return };
    let last = cluster.members[0].put("during", "x").await;
    assert!(file != LOG || last.is_err(), "acknowledged without a sync: {last:?}");
    ends_with_a_sentence(&mut cluster.members[0], &[name, "Input/output error"]);
    drop(injection);
    cluster.members[0].start();
    cluster.wait_ready().await;
    all_there(&cluster.members[0], &acknowledged).await;
    if let Ok(revision) = last {
        all_there(&cluster.members[0], &BTreeMap::from([("during".to_owned(), revision)])).await;
    }
    write(&cluster.members[0], "after", 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_of_the_log_ends_the_process_and_loses_nothing() {
    sync_error("a_failed_sync_of_the_log", LOG, "0000000000000000-0000000000000000.wal").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_of_the_database_ends_the_process_and_loses_nothing() {
    sync_error("a_failed_sync_of_the_database", DATABASE, "db.redb").await;
}

/// B2, etcd 14370: a lone member answered a put before its log was on the disk, and a power cut took what was
/// acknowledged. Each sync is held up, so that an answer that does not wait for it is there first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b02_a_lone_member_answers_no_write_before_its_sync_returned() {
    let cluster = Cluster::ours(1, &[]).await;
    let member = &cluster.members[0];
    let test = "b02_a_lone_member_answers_no_write_before_its_sync_returned";
    let fault = format!("delay_enter={}", Duration::from_millis(1500).as_micros());
    let Some(injection) = Injection::attach(test, member, LOG, &fault).await else { return };
    for round in 0..3 {
        let before = injection.finished();
        member.put(&format!("slow/{round}"), "x").await.expect("late, but carried out");
        assert!(injection.finished() > before, "answered before the sync returned, {before} syncs so far");
    }
}

async fn term(cluster: &Cluster) -> u64 {
    let leader = cluster.leader().await;
    cluster.members[leader].status().await.expect("a status").raft_term
}

/// Neither a slow database of the leader nor a slow log of a follower may end the leader's term.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_disks_cause_no_election() {
    let test = "slow_disks_cause_no_election";
    let cluster = Cluster::ours(3, &["--heartbeat-interval", "200", "--election-timeout", "2000"]).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let before = term(&cluster).await;
    let slow = format!("delay_enter={}", Duration::from_secs(3).as_micros());
    let Some(_database) = Injection::attach(test, &cluster.members[leader], DATABASE, &slow).await else { return };
    let Some(_log) = Injection::attach(test, &cluster.members[follower], LOG, &slow).await else { return };
    let start = Instant::now();
    let mut acknowledged = BTreeMap::new();
    for round in 0.. {
        // Several times as long as it takes to elect somebody.
        if start.elapsed() > Duration::from_secs(8) {
            break;
        }
        acknowledged.append(&mut write(&cluster.members[leader], &format!("slow/{round}"), 20).await);
    }
    assert_eq!(term(&cluster).await, before, "{}", cluster.logs("somebody called an election"));
    assert_eq!(cluster.leader().await, leader);
    let third = 3 - leader - follower;
    all_there(&cluster.members[third], &acknowledged.into_iter().take(5).collect()).await;
}

/// A file system of its own below the cluster's directory, gone when dropped.
pub struct Mount {
    pub dir: PathBuf,
}

impl Mount {
    /// `None`, said aloud, without the right to mount.
    fn new(test: &str, dir: PathBuf, words: &[&str]) -> Option<Mount> {
        std::fs::create_dir_all(&dir).expect("a directory");
        let mut command = Command::new("mount");
        let output = command.args(words).arg(&dir).output();
        match output {
            Ok(output) if output.status.success() => Some(Mount { dir }),
            Ok(output) => {
                skipped(test, &format!("cannot mount: {}", String::from_utf8_lossy(&output.stderr).trim()));
                None
            }
            Err(error) => {
                skipped(test, &format!("cannot mount: {error}"));
                None
            }
        }
    }
}

impl Mount {
    /// From here on the file system is as after a power cut, for those who hold it too.
    pub fn cut_power(&self) {
        let cut = Command::new("python3").args(["-c", CUT]).arg(&self.dir).status();
        assert!(cut.is_ok_and(|status| status.success()), "the file system cannot be shut down");
    }

    /// Takes it away; nobody may hold it any more.
    pub fn unmount(self) {
        let unmounted = Command::new("umount").arg(&self.dir).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "somebody holds {}", self.dir.display());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Nothing is mounted there any more after `unmount`.
        let _ = Command::new("umount").args(["-q", "-l"]).arg(&self.dir).stderr(Stdio::null()).status();
    }
}

/// A lone member, not started, whose data directory is at `data_dir`.
fn lone_at(data_dir: &Path) -> Cluster {
    let mut cluster = Cluster::prepare(&[Program::Ours], &[]);
    cluster.members[0].set_arg("--data-dir", data_dir.to_str().expect("temporary paths are UTF-8"));
    cluster.members[0].data_dir = data_dir.to_owned();
    cluster
}

/// Takes all space that is left.
fn fill(dir: &Path) -> PathBuf {
    let path = dir.join("filler");
    let mut filler = std::fs::File::create(&path).expect("a file");
    let block = vec![1_u8; 4096];
    while std::io::Write::write_all(&mut filler, &block).is_ok() {}
    path
}

/// B17, etcd 2819: a disk that filled up in the middle of an append left a log that could not be read any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b17_a_full_disk_ends_the_process_and_space_brings_it_back() {
    let test = "b17_a_full_disk_ends_the_process_and_space_brings_it_back";
    let disk = tempfile::tempdir().expect("a temporary directory");
    let dir = disk.path().join("small");
    // Two segments of the log and some megabytes.
    let Some(mount) = Mount::new(test, dir, &["-t", "tmpfs", "-o", "size=144m", "tmpfs"]) else { return };
    let mut cluster = lone_at(&mount.dir.join("m1.etcd"));
    cluster.members[0].start();
    cluster.wait_ready().await;
    let mut acknowledged = write(&cluster.members[0], "before", 20).await;
    let filler = fill(&mount.dir);
    let value = "v".repeat(500_000);
    for number in 0..400 {
        let key = format!("during/{number:04}");
        match cluster.members[0].put(&key, &value).await {
            Ok(revision) => drop(acknowledged.insert(key, revision)),
            Err(_) => break,
        }
    }
    ends_with_a_sentence(&mut cluster.members[0], &[mount.dir.to_str().expect("UTF-8"), "No space left on device"]);
    // While there is no space it may refuse to start, or start and stop again; with the same sentence, and it may not hang.
    let said = cluster.members[0].log_count("No space left on device");
    cluster.members[0].start();
    ends_with_a_sentence(&mut cluster.members[0], &[mount.dir.to_str().expect("UTF-8"), "No space left on device"]);
    assert!(cluster.members[0].log_count("No space left on device") > said, "the second end does not say why");
    std::fs::remove_file(filler).expect("the filler goes");
    // Room for what it was about to write as well.
    let bigger = Command::new("mount").args(["-o", "remount,size=600m"]).arg(&mount.dir).status();
    assert!(bigger.is_ok_and(|status| status.success()), "the file system cannot be made larger");
    cluster.members[0].start();
    cluster.wait_ready().await;
    all_there(&cluster.members[0], &acknowledged).await;
    write(&cluster.members[0], "after", 3).await;
    cluster.members[0].terminate();
}

/// ext4's shutdown ioctl without a log flush: what was not synced is gone, as if the power had failed.
const CUT: &str = "
import fcntl, os, struct, sys
handle = os.open(sys.argv[1], os.O_RDONLY)
fcntl.ioctl(handle, 0x8004587d, struct.pack('I', 2))
";

/// An ext4 file system in a file.
pub struct Ext4 {
    files: tempfile::TempDir,
    test: &'static str,
}

impl Ext4 {
    /// `None`, said aloud, if it cannot be made here or its power cannot be cut.
    pub fn new(test: &'static str, bytes: u64) -> Option<Ext4> {
        let disk = Ext4 { files: tempfile::tempdir().expect("a temporary directory"), test };
        std::fs::File::create(disk.image()).and_then(|file| file.set_len(bytes)).expect("an image");
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.image()).status();
        if !made.is_ok_and(|status| status.success()) {
            skipped(test, "mkfs.ext4 cannot be had");
            return None;
        }
        if Command::new("python3").arg("-V").stdout(Stdio::null()).status().is_err() {
            skipped(test, "python3 is not installed");
            return None;
        }
        Some(disk)
    }

    fn image(&self) -> PathBuf {
        self.files.path().join("image")
    }

    /// Where it is mounted.
    pub fn dir(&self) -> PathBuf {
        self.files.path().join("disk")
    }

    pub fn mount(&self) -> Option<Mount> {
        let image = self.image();
        Mount::new(self.test, self.dir(), &["-o", "loop", image.to_str().expect("temporary paths are UTF-8")])
    }
}

/// B2, etcd 14370: acknowledged before the sync, and gone with the power. B13, etcd 6368: synced, but the directory
/// that names the new file was not: gone as well, and most easily right after the first write of a new data directory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b02_b13_what_was_acknowledged_survives_a_power_cut() {
    let test = "b02_b13_what_was_acknowledged_survives_a_power_cut";
    let Some(disk) = Ext4::new(test, 512 << 20) else { return };
    let mut cluster = lone_at(&disk.dir().join("m1.etcd"));
    let mut acknowledged = BTreeMap::new();
    for (round, count) in [1, 40, 7, 120].into_iter().enumerate() {
        let Some(mount) = disk.mount() else { return };
        cluster.members[0].start();
        cluster.wait_ready().await;
        all_there(&cluster.members[0], &acknowledged).await;
        acknowledged.append(&mut write(&cluster.members[0], &format!("round/{round}"), count).await);
        mount.cut_power();
        // No disk, no acknowledgement.
        let late = cluster.members[0].put("late", "x").await;
        assert!(late.is_err(), "acknowledged without a disk: {late:?}");
        ends_with_a_sentence(&mut cluster.members[0], &["Input/output error"]);
        mount.unmount();
    }
    let Some(_mount) = disk.mount() else { return };
    cluster.members[0].start();
    cluster.wait_ready().await;
    all_there(&cluster.members[0], &acknowledged).await;
    cluster.members[0].terminate();
}

/// B25, etcd 0.4.1 (Jepsen 2014), Consul: a leader that no longer led answered reads from what it had, as if it were
/// the truth. Who cannot reach a majority may answer a serializable read, and no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b25_a_leader_without_followers_answers_no_linearizable_read() {
    let cluster = Cluster::ours(3, &["--heartbeat-interval", "50", "--election-timeout", "500"]).await;
    let leader = cluster.leader().await;
    cluster.members[leader].put("k", "v").await.expect("a put");
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    others.iter().for_each(|other| cluster.members[*other].pause());
    let channel = cluster.members[leader].connect().await.expect("a connection");
    let read = RangeRequest { key: "k".into(), ..RangeRequest::default() };
    let linearizable = KvClient::new(channel.clone()).range(read.clone()).await;
    assert!(linearizable.is_err(), "nobody confirmed it: {linearizable:?}");
    assert!(cluster.members[leader].put("k", "w").await.is_err(), "nobody else has it");
    let serializable = KvClient::new(channel).range(RangeRequest { serializable: true, ..read }).await;
    assert_eq!(serializable.expect("local state").into_inner().kvs[0].value.as_ref(), b"v");
    others.iter().for_each(|other| cluster.members[*other].signal(Signal::SIGCONT));
    cluster.wait_ready().await;
    cluster.hashes_agree().await;
}
