//! The client libraries of five languages, unmodified, against three members of ours.
//!
//! Their scripts are in `tests/clients`, one a language: each puts, ranges, transacts, watches, leases, locks, elects and
//! looks after members, as far as its library can, checks what comes back, and says `ok` and the name of each part.
//! Libraries are fetched and built below `target/clients`, at the versions that the scripts pin. A language whose tools or
//! registry are not to be had is skipped; a script that no longer builds is a failure.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::support::skipped;
use crate::support::target_dir;

/// A script that has not ended by then hangs.
const SCRIPT_MAX: Duration = Duration::from_secs(180);

/// A language's script, and where its library is built.
struct Language {
    name: &'static str,
    source: PathBuf,
    scratch: PathBuf,
}

/// What a step of the preparation comes to.
type Step = Result<(), String>;

impl Language {
    fn new(name: &'static str) -> Language {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name);
        let scratch = target_dir().join("clients").join(name);
        std::fs::create_dir_all(&scratch).expect("a directory below target");
        Language { name, source, scratch }
    }

    /// A program that leaves the processors to others.
    fn command(&self, program: &str, words: &[&str]) -> Command {
        let mut command = Command::new("nice");
        command.args(["-n", "19", program]).args(words).current_dir(&self.source).stdin(Stdio::null());
        command
    }

    fn path(&self, name: &str) -> String {
        self.scratch.join(name).to_str().expect("paths of this tree are UTF-8").to_owned()
    }

    /// Whether what was fetched for this file of the source is still what it asks for.
    fn is_fetched(&self, file: &str) -> bool {
        let text = |dir: &Path| std::fs::read(dir.join(file)).ok();
        text(&self.scratch).is_some_and(|fetched| Some(fetched) == text(&self.source))
    }

    /// Remembers it.
    fn fetched(&self, file: &str) {
        self.copy(file);
        assert!(self.is_fetched(file), "{file}");
    }

    fn copy(&self, file: &str) {
        std::fs::copy(self.source.join(file), self.scratch.join(file)).expect("a copy below target");
    }
}

/// Runs a program to its end: what it printed.
fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(format!("{command:?}: {}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr))),
    }
}

fn run(command: &mut Command) -> Step {
    output(command).map(drop)
}

/// Builds what is ours: it must.
fn build(command: &mut Command) {
    run(command).unwrap_or_else(|error| panic!("{error}"));
}

/// Starts three members, runs a script against them, and expects it to get through these parts.
async fn drive(language: &Language, script: Command, parts: &[&str]) {
    let cluster = Cluster::ours(3, &["--unsafe-no-fsync"]).await;
    let endpoints: Vec<String> = cluster.members.iter().map(|member| member.endpoint()).collect();
    let mut script = tokio::process::Command::from(script);
    script.arg(endpoints.join(",")).stdin(Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(SCRIPT_MAX, script.output()).await;
    let output = ended.unwrap_or_else(|_| panic!("{}: it hangs", language.name)).expect("the script starts");
    let printed = String::from_utf8_lossy(&output.stdout);
    let done: Vec<&str> = printed.lines().filter_map(|line| line.strip_prefix("ok ")).collect();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {} behind {done:?}\n{printed}\n{told}", language.name, output.status);
    assert_eq!(done, parts, "{}", language.name);
}

#[tokio::test(flavor = "multi_thread")]
async fn go_client_v3_and_its_concurrency_package() {
    let language = Language::new("go");
    let (modules, cache, program) = (language.path("mod"), language.path("cache"), language.path("client"));
    let go = |words: &[&str]| {
        let mut command = language.command("go", words);
        // Writable, so that the scratch can be removed like any directory.
        command.env("GOMODCACHE", &modules).env("GOCACHE", &cache).env("GOFLAGS", "-modcacherw -buildvcs=false");
        command.env("GOTOOLCHAIN", "local");
        command
    };
    if let Err(why) = run(&mut go(&["mod", "download"])) {
        return skipped("go_client_v3_and_its_concurrency_package", &why);
    }
    build(&mut go(&["build", "-o", &program, "."]));
    let parts =
        ["kv", "txn", "watch", "lease", "lock", "elect", "stm", "wrappers", "compact", "members", "status", "snapshot"];
    drive(&language, Command::new(program), &parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_etcd3() {
    let language = Language::new("python");
    let (environment, python) = (language.path("venv"), language.path("venv/bin/python"));
    let requirements = "requirements.txt";
    let fetch = || -> Step {
        if language.is_fetched(requirements) {
            return Ok(());
        }
        run(&mut language.command("python3", &["-m", "venv", "--clear", &environment]))?;
        run(&mut language.command(&python, &["-m", "pip", "install", "--quiet", "--no-deps", "-r", requirements]))?;
        language.fetched(requirements);
        Ok(())
    };
    if let Err(why) = fetch() {
        return skipped("python_etcd3", &why);
    }
    let mut script = Command::new(python);
    script.arg(language.source.join("main.py"));
    // Its lock is its own recipe, and it has no elections.
    let parts = ["kv", "txn", "watch", "lease", "lock", "members", "status", "snapshot"];
    drive(&language, script, &parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_etcd3() {
    let language = Language::new("node");
    let fetch = || -> Step {
        if language.is_fetched("package-lock.json") {
            return Ok(());
        }
        // npm installs beside the files that name what is wanted.
        let before = language.scratch.join("package-lock.json");
        language.copy("package.json");
        language.copy("package-lock.json");
        let mut npm = language.command("npm", &["ci", "--no-audit", "--no-fund", "--ignore-scripts"]);
        run(npm.current_dir(&language.scratch)).inspect_err(|_| drop(std::fs::remove_file(&before)))
    };
    if let Err(why) = fetch() {
        return skipped("node_etcd3", &why);
    }
    language.copy("main.js");
    let mut script = Command::new("node");
    script.arg(language.scratch.join("main.js"));
    let parts = ["kv", "txn", "watch", "lease", "lock", "elect", "members", "status", "snapshot"];
    drive(&language, script, &parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rust_etcd_client() {
    let language = Language::new("rust");
    let target = language.path("target");
    let cargo = |words: &[&str]| {
        let mut command = language.command(env!("CARGO"), words);
        // This test runs below a cargo of its own.
        let ours = std::env::vars().filter(|(name, _)| name.starts_with("CARGO_") && name != "CARGO_HOME");
        ours.for_each(|(name, _)| {
            command.env_remove(name);
        });
        command.env("CARGO_TARGET_DIR", &target);
        command
    };
    if let Err(why) = run(&mut cargo(&["fetch", "--quiet", "--locked"])) {
        return skipped("rust_etcd_client", &why);
    }
    let protoc = output(&mut cargo(&["run", "--quiet", "--locked", "--no-default-features", "--bin", "protoc"]));
    let protoc = protoc.unwrap_or_else(|error| panic!("{error}"));
    build(cargo(&["build", "--quiet", "--locked", "--bin", "client"]).env("PROTOC", protoc));
    let parts = ["kv", "txn", "watch", "lease", "lock", "elect", "members", "status", "snapshot"];
    drive(&language, Command::new(language.path("target/debug/client")), &parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn java_jetcd() {
    let language = Language::new("java");
    let (repository, jars, classes) = (language.path("repository"), language.path("jars"), language.path("classes"));
    let fetch = || -> Step {
        if language.is_fetched("pom.xml") {
            return Ok(());
        }
        let (repository, jars) = (format!("-Dmaven.repo.local={repository}"), format!("-DoutputDirectory={jars}"));
        run(&mut language.command("mvn", &["-q", "-B", &repository, "dependency:copy-dependencies", &jars]))?;
        language.fetched("pom.xml");
        Ok(())
    };
    if let Err(why) = fetch() {
        return skipped("java_jetcd", &why);
    }
    std::fs::create_dir_all(&classes).expect("a directory below target");
    build(&mut language.command("javac", &["-nowarn", "-cp", &format!("{jars}/*"), "-d", &classes, "Main.java"]));
    let mut script = Command::new("java");
    script.args(["-cp", &format!("{classes}:{jars}/*"), "Main"]);
    let parts = ["kv", "txn", "watch", "lease", "lock", "elect", "members", "status", "snapshot"];
    drive(&language, script, &parts).await;
}
