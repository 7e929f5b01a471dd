//! The way in and the way back: members of ours go on from etcd's directories, etcd goes on from what `utl export` makes.

use std::path::Path;
use std::process::ExitStatus;

use crate::cluster::Cluster;
use crate::cluster::Program;
use crate::cluster::copy_dir;
use crate::oracle::oracle;
use crate::utl::fill;
use crate::utl::holds;
use crate::utl::members;
use crate::utl::programs;
use crate::utl::run;
use crate::utl::text;
use crate::utl::utl;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_comes_over_and_goes_back_with_everything() {
    let test = "a_member_comes_over_and_goes_back_with_everything";
    let Some(programs) = programs(test) else { return };
    for (name, program) in programs.into_iter().filter(|(name, _)| *name != "ours") {
        let mut cluster = Cluster::start(std::slice::from_ref(&program), &[]).await;
        let filled = fill(&cluster.members[0]).await;
        let before = members(&cluster.members[0]).await;
        // Killed, so that the end of the log is all there is of the newest writes.
        cluster.members[0].kill();
        let theirs = cluster.members[0].data_dir.clone();
        cluster.members[0].replace(Program::Ours, theirs.clone());
        cluster.members[0].start();
        cluster.wait_ready().await;
        holds(&cluster.members[0], &filled).await;
        assert_eq!(members(&cluster.members[0]).await, before, "{name}");
        let revision = cluster.members[0].put("ours", "too").await.expect("a put");
        assert_eq!(revision, filled.revision + 1, "{name}");
        let hash = cluster.members[0].hash_kv(revision).await.expect("a hash").hash;
        assert!(theirs.join("member.etcd/snap/db").exists() && !theirs.join("member/snap/db").exists());
        // What was kept is etcd's own directory, as it was: whatever we have written since.
        let kept = theirs.with_extension("kept");
        copy_dir(&theirs.join("member.etcd"), &kept.join("member"));
        let mut again = Cluster::prepare(std::slice::from_ref(&program), &[]);
        again.members[0].replace(program.clone(), kept);
        again.members[0].start();
        again.wait_ready().await;
        holds(&again.members[0], &filled).await;
        assert_eq!(again.members[0].get("ours").await.expect("a read").count, 0);
        drop(again);
        // The cluster version has risen meanwhile, perhaps: etcd is given its own line.
        cluster.members[0].kill();
        let back = theirs.with_extension("back");
        let line = &name[..3];
        utl(&["export", "--data-dir", text(&theirs), "--output", text(&back), "--target-version", line]);
        cluster.members[0].replace(program, back);
        cluster.members[0].start();
        cluster.wait_ready().await;
        holds(&cluster.members[0], &filled).await;
        assert_eq!(cluster.members[0].hash_kv(revision).await.expect("a hash").hash, hash, "{name}");
        assert_eq!(members(&cluster.members[0]).await, before, "{name}");
        cluster.members[0].put("and on", "it goes").await.expect("a put");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_comes_over_and_goes_back_while_the_others_go_on() {
    let test = "one_of_three_comes_over_and_goes_back_while_the_others_go_on";
    let Some(real) = oracle(test) else { return };
    let etcd = Program::Etcd(real.etcd.clone());
    let three = [etcd.clone(), etcd.clone(), etcd.clone()];
    let mut cluster = Cluster::start(&three, &["--snapshot-count", "50"]).await;
    let filled = fill(&cluster.members[0]).await;
    let leader = cluster.leader().await;
    let moved = (leader + 1) % 3;
    let data = cluster.members[moved].data_dir.clone();
    cluster.members[moved].terminate();
    cluster.members[leader].put("meanwhile", "1").await.expect("a put");
    cluster.members[moved].replace(Program::Ours, data.clone());
    cluster.members[moved].start();
    cluster.wait_ready().await;
    cluster.members[moved].put("through", "ours").await.expect("a put");
    cluster.hashes_agree().await;
    holds(&cluster.members[moved], &filled).await;
    // It can lead, and what it acknowledged stays when it goes back.
    cluster.move_leader(|position| position == moved).await;
    for number in 0..20 {
        cluster.members[moved].put(&format!("led/{number}"), "ours").await.expect("a put");
    }
    cluster.members[moved].kill();
    let back = data.with_extension("back");
    utl(&["export", "--data-dir", text(&data), "--output", text(&back)]);
    crate::support::eventually("the two others to go on", async || {
        cluster.members[leader].put("meanwhile", "2").await.map_err(|status| status.to_string())
    })
    .await;
    cluster.members[moved].replace(etcd, back);
    cluster.members[moved].start();
    cluster.wait_ready().await;
    cluster.hashes_agree().await;
    holds(&cluster.members[moved], &filled).await;
    assert_eq!(cluster.members[moved].get("led/19").await.expect("a read").count, 1);
}

/// kill -9 at moments all over a take-over: etcd's directory is whole, or ours goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_takeover_loses_nothing() {
    let test = "a_killed_takeover_loses_nothing";
    let Some(real) = oracle(test) else { return };
    let etcd = Program::Etcd(real.etcd.clone());
    let mut cluster = Cluster::start(std::slice::from_ref(&etcd), &["--unsafe-no-fsync"]).await;
    let filled = fill(&cluster.members[0]).await;
    cluster.members[0].terminate();
    let original = cluster.members[0].data_dir.clone();
    let mut taken_over = 0;
    for round in 0..12_u64 {
        let data = original.with_extension(format!("round{round}"));
        copy_dir(&original, &data);
        cluster.members[0].replace(Program::Ours, data.clone());
        let before = cluster.members[0].log_count("taking over a data directory");
        cluster.members[0].start();
        crate::support::eventually("the take-over to begin", async || {
            let begun = cluster.members[0].log_count("taking over a data directory") > before;
            if begun { Ok(()) } else { Err(cluster.members[0].log_text()) }
        })
        .await;
        // Where it is by then differs from run to run: each moment must do.
        tokio::time::sleep(std::time::Duration::from_millis(round * 7)).await;
        cluster.members[0].kill();
        let is_ours = data.join("member/snap/db.redb").exists();
        taken_over += usize::from(is_ours);
        if !is_ours && round % 2 == 0 {
            // Nothing of it was changed: etcd itself goes on.
            cluster.members[0].replace(etcd.clone(), data);
        }
        cluster.members[0].start();
        cluster.wait_ready().await;
        holds(&cluster.members[0], &filled).await;
        cluster.members[0].kill();
    }
    eprintln!("{taken_over} of 12 were taken over when they were killed");
}

/// Exit status and the last line of standard error.
fn refused(words: &[&str]) -> (ExitStatus, String) {
    let output = run(Path::new(env!("CARGO_BIN_EXE_quorate")), words);
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status, err.lines().last().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_that_cannot_be_made_leaves_nothing() {
    let mut cluster = Cluster::ours(1, &[]).await;
    let filled = fill(&cluster.members[0]).await;
    let data = cluster.members[0].data_dir.clone();
    let out = data.with_extension("out");
    let check = |words: &[&str], code: i32, error: &str| {
        let (status, line) = refused(&[&["utl", "export"], words].concat());
        assert_eq!((status.code(), line.as_str()), (Some(code), error), "{words:?}");
        assert!(!out.exists(), "{words:?}");
    };
    let (from, to) = (["--data-dir", text(&data)], ["--output", text(&out)]);
    let both = [from, to].concat();
    let locked = format!("Error: data directory {} is locked by another process", data.display());
    check(&both, 1, &locked);
    cluster.members[0].kill();
    let older = |line| [&both[..], &["--target-version", line]].concat();
    check(&older("3"), 128, "Error: wrong target version format, expected \"X.Y\", got \"3\"");
    check(&older("3.3"), 128, "Error: target version \"3.3\" not supported. Minimal \"3.4\"");
    check(
        &older("3.9"),
        1,
        "Error: the cluster version is 3.7.0: export for that, and etcd 3.9.0 will raise it by itself",
    );
    let taken = [&from[..], &["--output", text(cluster.dir.path())]].concat();
    check(&taken, 1, &format!("Error: output \"{}\" not empty or could not be read", cluster.dir.path().display()));
    // Nothing that was refused has changed anything.
    cluster.members[0].start();
    cluster.wait_ready().await;
    holds(&cluster.members[0], &filled).await;
}
