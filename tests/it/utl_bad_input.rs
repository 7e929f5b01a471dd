//! Files and command lines that `utl` must refuse: etcdutl's texts and codes, and nothing left behind.

use std::path::Path;

use crate::cluster::Cluster;
use crate::oracle::oracle;
use crate::support::named_program;
use crate::utl::fill;
use crate::utl::run;
use crate::utl::succeeded;
use crate::utl::text;

/// A snapshot of a member of ours.
async fn snapshot(file: &Path) {
    let cluster = Cluster::ours(1, &["--unsafe-no-fsync"]).await;
    fill(&cluster.members[0]).await;
    let (_link, etcdctl) = named_program("etcdctl");
    succeeded(&run(&etcdctl, &["--endpoints", &cluster.members[0].endpoint(), "snapshot", "save", text(file)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_no_snapshots_are_refused_and_leave_nothing() {
    let (_link, etcdutl) = named_program("etcdutl");
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    snapshot(&path("good.db")).await;
    let good = std::fs::read(path("good.db")).expect("a file");
    let image = good.len() - 32;
    let mut flipped = good.clone();
    flipped[image / 2] ^= 1;
    let mut foreign = good.clone();
    foreign[..image].fill(b'x');
    let files: [(&str, &[u8]); 7] = [
        ("flipped.db", &flipped),
        ("truncated.db", &good[..image / 2 + 100]),
        ("no-digest.db", &good[..image]),
        ("half.db", &good[..8192 + 32]),
        ("empty.db", b""),
        ("short.db", &good[..5000]),
        ("foreign.db", &foreign),
    ];
    for (name, content) in files {
        std::fs::write(path(name), content).expect("a file");
    }
    std::fs::create_dir(path("a-directory")).expect("a directory");
    let check = |words: &[&str], code: i32, error: &str| {
        let output = run(&etcdutl, words);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        let told: Vec<&str> = err.lines().filter(|line| !line.contains("\tinfo\t")).collect();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {err}");
        let exact = error.strip_suffix('…');
        let matches = exact.map_or(told.join("\n") == error, |begin| told.join("\n").starts_with(begin));
        assert!(matches, "{words:?}: {told:?} instead of {error}");
        assert!(output.stdout.is_empty(), "{words:?}");
    };
    let out = path("out");
    let restore = |name: &str, code: i32, error: &str, more: &[&str]| {
        let file = path(name);
        let words = [&["snapshot", "restore", text(&file), "--data-dir", text(&out)], more].concat();
        check(&words, code, &error.replace("FILE", text(&file)));
        assert!(!out.exists(), "{name} left something");
    };
    restore("none.db", 1, "Error: open FILE: no such file or directory", &[]);
    restore("empty.db", 1, "Error: seek FILE: invalid argument", &[]);
    restore("flipped.db", 1, "Error: expected sha256 […", &[]);
    restore("foreign.db", 1, "Error: expected sha256 […", &[]);
    restore("no-digest.db", 1, "Error: snapshot missing hash but --skip-hash-check=false", &[]);
    restore("truncated.db", 1, "Error: snapshot missing hash but --skip-hash-check=false", &[]);
    let skip = ["--skip-hash-check"];
    restore("foreign.db", 1, "Error: invalid database", &skip);
    restore("short.db", 1, "Error: file size too small 5000", &skip);
    restore("truncated.db", 1, "Error: FILE is damaged: …", &skip);
    restore("half.db", 1, "Error: FILE is damaged: …", &skip);
    let status = |name: &str, code: i32, error: &str| {
        let file = path(name);
        check(&["snapshot", "status", text(&file)], code, &error.replace("FILE", text(&file)));
    };
    status("none.db", 1, "Error: stat FILE: no such file or directory");
    status("empty.db", 1, "Error: write FILE: bad file descriptor");
    status("short.db", 1, "Error: file size too small 5000");
    status("foreign.db", 1, "Error: invalid database");
    status("a-directory", 1, "Error: invalid database");
    // The digest is not a status's business.
    let ours = run(&etcdutl, &["snapshot", "status", text(&path("no-digest.db"))]);
    assert_eq!(succeeded(&ours), succeeded(&run(&etcdutl, &["snapshot", "status", text(&path("good.db"))])));
    // And with the check left out, a file without one is as good as any.
    let words =
        ["snapshot", "restore", text(&path("no-digest.db")), "--data-dir", text(&out), skip[0]].map(str::to_owned);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    succeeded(&run(&etcdutl, &words));
    let before = std::fs::read(out.join("member/snap/db")).expect("a database");
    let taken = format!("Error: data-dir \"{}\" not empty or could not be read", out.display());
    check(&words, 1, &taken);
    assert!(std::fs::read(out.join("member/snap/db")).expect("a database") == before, "what is there stays");
    let wal = path("a-directory");
    let words =
        ["snapshot", "restore", text(&path("good.db")), "--data-dir", "x", "--wal-dir", text(&wal)].map(str::to_owned);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    check(&words, 1, &format!("Error: wal-dir \"{}\" exists", wal.display()));
}

/// The same mistakes, made with the real program.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_and_codes_are_the_real_programs() {
    let Some(real) = oracle("texts_and_codes_are_the_real_programs") else { return };
    let (_link, etcdutl) = named_program("etcdutl");
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    snapshot(&path("good.db")).await;
    let good = std::fs::read(path("good.db")).expect("a file");
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    std::fs::write(path("flipped.db"), &flipped).expect("a file");
    std::fs::write(path("no-digest.db"), &good[..good.len() - 32]).expect("a file");
    std::fs::write(path("empty.db"), b"").expect("a file");
    let file = |name: &str| text(&path(name)).to_owned();
    let (good, flipped, bare, empty) = (file("good.db"), file("flipped.db"), file("no-digest.db"), file("empty.db"));
    let lines: [&[&str]; 12] = [
        &["snapshot", "status"],
        &["snapshot", "status", "/none"],
        &["snapshot", "status", &empty],
        &["snapshot", "status", &good, "-w", "bogus"],
        &["snapshot", "status", &good, "-w", "protobuf"],
        &["snapshot", "restore", "/none", "--data-dir"],
        &["snapshot", "restore", "/none", "--data-dir", "OUT"],
        &["snapshot", "restore", &flipped, "--data-dir", "OUT"],
        &["snapshot", "restore", &bare, "--data-dir", "OUT"],
        &["snapshot", "restore", &empty, "--data-dir", "OUT"],
        &["snapshot", "restore", &good, "--data-dir", "OUT", "--name", "foo"],
        &["defrag", "--data-dir", "/none"],
    ];
    for (number, line) in lines.into_iter().enumerate() {
        let mut told = Vec::new();
        for (program, whose) in [(&etcdutl, "ours"), (&real.etcdutl, "theirs")] {
            // The real program leaves half a directory behind.
            let out = path(&format!("{whose}{number}"));
            let words: Vec<&str> = line.iter().map(|word| if *word == "OUT" { text(&out) } else { word }).collect();
            let output = run(program, &words);
            let err = String::from_utf8_lossy(&output.stderr).into_owned();
            // Usage is ours to word; the last line is the error in both.
            told.push((output.status.code(), err.lines().last().unwrap_or_default().to_owned()));
        }
        assert_eq!(told[0], told[1], "{line:?}");
    }
}
