//! `quorate bench` as users run it: on a member that runs, and as the judge of two programs. Figures are only asked to
//! be there and to fit together; how large they are is nobody's business here.

use std::path::Path;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::Cluster;
use crate::oracle::oracle;
use crate::support::eventually;
use crate::support::free_port;

const OURS: &str = env!("CARGO_BIN_EXE_quorate");

fn bench(words: &[&str]) -> Output {
    let output = Command::new(OURS).arg("bench").args(words).env_clear().stdin(Stdio::null()).output();
    output.expect("our own program starts")
}

fn text(words: &[&str]) -> String {
    let output = bench(words);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{words:?}: {}\n{out}\n{err}", output.status);
    assert_eq!(err, "", "nothing on stderr where nobody looks");
    out.into_owned()
}

fn json(words: &[&str]) -> Value {
    let out = text(words);
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{words:?}: {error}: {out}"))
}

fn positive(value: &Value) -> f64 {
    let number = value.as_f64().unwrap_or_else(|| panic!("{value} is no number"));
    assert!(number > 0.0 && number.is_finite(), "{number}");
    number
}

/// Threads of the runtime here are needed while the program runs.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("the work does not panic unheard")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_workload_runs_on_a_member_and_does_what_it_says() {
    let cluster = Cluster::ours(1, &[]).await;
    let (endpoint, pid) = (cluster.members[0].endpoint(), cluster.members[0].pid().to_string());
    let ended = blocking(move || {
        let run = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            json(&[&["--endpoints", &endpoint, "--pid", &pid, "--json"], &words[..]].concat())
        };
        let put = run("put --conns 2 --clients 5 --total 300 --sequential-keys --val-size 100");
        assert_eq!((&put["requests"], &put["failed"]), (&300.into(), &0.into()), "{put}");
        let latency = &put["latency_ms"];
        let rising = ["p50", "p90", "p95", "p99", "p99.9", "max"].map(|name| positive(&latency[name]));
        assert!(rising.is_sorted(), "{latency}");
        positive(&put["requests_per_second"]);
        positive(&put["server"]["memory"]["resident_bytes"]);

        // What one run wrote the others read.
        let one = run("range 00000007 --total 50 --clients 3");
        assert_eq!((&one["requests"], &one["keys_read"]), (&50.into(), &50.into()), "{one}");
        let fallen = run("range 99999999 --total 5 --consistency s");
        assert_eq!((&fallen["requests"], &fallen["keys_read"]), (&5.into(), &0.into()), "{fallen}");
        let part = run("range 00000000 00000010 --total 4 --limit 3");
        assert_eq!((&part["keys_read"], &part["pages_read"]), (&12.into(), &4.into()), "{part}");
        let list = run("range --pages --limit 70 --total 2 --consistency s");
        assert_eq!((&list["keys_read"], &list["pages_read"]), (&600.into(), &10.into()), "{list}");

        let txn = run("txn --txn-ops 4 --total 10 --key-size 9 --sequential-keys");
        assert_eq!((&txn["requests"], &txn["failed"]), (&10.into(), &0.into()), "{txn}");
        let list = run("range --pages --limit 1000 --total 1");
        assert_eq!(list["keys_read"], 340, "{list}");

        let mixed = run("mixed --total 200 --clients 4 --key-space-size 10 --rw-ratio 3 --rate 2000");
        let count = |kind: &str| mixed[kind]["count"].as_u64().unwrap_or_default();
        assert_eq!(count("reads_ms") + count("writes_ms"), 200, "{mixed}");
        assert!(count("reads_ms") > count("writes_ms") && count("writes_ms") > 0, "{mixed}");
        // The 200th request is due 199 steps of 0.5 ms after the first.
        assert!(positive(&mixed["seconds"]) >= 0.0995, "{mixed}");

        let renewed = run("lease-keepalive --leases 3 --total 100 --clients 4");
        assert_eq!((&renewed["requests"], &renewed["failed"]), (&100.into(), &0.into()), "{renewed}");
        let again = run("lease-keepalive --leases 3 --total 10");
        assert_eq!((&again["requests"], &again["failed"]), (&10.into(), &0.into()), "{again}");
        let granted = run("lease-grant --ttl 60 --total 20");
        assert_eq!((&granted["requests"], &granted["failed"]), (&20.into(), &0.into()), "{granted}");

        // Three keys of four are watched, by seven of twenty watchers each, or six.
        let words = "watch --streams 4 --watch-per-stream 5 --watched-key-total 3 --key-space-size 4 --put-total 8";
        let watched = run(&format!("--conns 2 {words} --sequential-keys --prevkv"));
        assert_eq!((&watched["watchers"], &watched["events"]), (&20.into(), &40.into()), "{watched}");
        let counts = ["delivery_ms", "puts_ms"].map(|kind| watched[kind]["count"].as_u64());
        assert_eq!(counts, [Some(40), Some(8)], "{watched}");
        positive(&watched["events_per_second"]);
        let paced = run("watch-latency --streams 2 --watchers-per-stream 3 --put-total 10 --put-rate 200");
        assert_eq!(paced["events"], 60, "{paced}");
        // The tenth put is due nine steps of 5 ms after the first.
        assert!(positive(&paced["seconds"]) >= 0.0449, "{paced}");
        let told = text(&["watch", "--endpoints", &endpoint, "--streams", "1", "--watch-per-stream", "1"]);
        for line in ["watch: 1 watcher on 1 stream over 1 connection", "1000 in ", "events/s", "delivery, ms"] {
            assert!(told.contains(line), "{line} in {told}");
        }

        let shown = text(&["put", "--endpoints", &endpoint, "--total", "20", "--floors", "--target-leader"]);
        for line in ["put: 1 client on 1 connection", "floor, empty", "floor, durable hop", "20 in ", "p99.9", "client"]
        {
            assert!(shown.contains(line), "{line} in {shown}");
        }
    });
    ended.await;
    let stored = cluster.members[0].get("00000299").await.expect("a read");
    assert_eq!(stored.kvs.first().map(|kv| kv.value.len()), Some(100));
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_counted_and_end_with_1() {
    let mut cluster = Cluster::ours(1, &["--max-request-bytes", "1000"]).await;
    let endpoint = cluster.members[0].endpoint();
    let refused = blocking({
        let endpoint = endpoint.clone();
        move || bench(&["put", "--endpoints", &endpoint, "--total", "7", "--val-size", "2000", "--json"])
    });
    let output = refused.await;
    assert_eq!(output.status.code(), Some(1));
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&told["requests"], &told["failed"]), (&0.into(), &7.into()), "{told}");
    assert_eq!(told["failures"]["etcdserver: request is too large"], 7, "{told}");
    cluster.members[0].kill();
    let output = blocking(move || bench(&["put", "--endpoints", &endpoint])).await;
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.starts_with("quorate bench: dial tcp 127.0.0.1:"), "{said}");
    assert_eq!(blocking(|| bench(&["put", "--key-size", "0"])).await.status.code(), Some(2));
    assert_eq!(blocking(|| bench(&["put", "--clients", "1", "--conns", "2"])).await.status.code(), Some(2));
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).expect("a readable directory").next().is_none()
}

/// Processes whose command line names a file below `dir`.
fn processes_of(dir: &Path) -> usize {
    let dir = dir.to_str().expect("temporary paths are UTF-8");
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(dir)).count()
}

/// Every figure of the whole table: case, members, figure.
fn figures(told: &Value) -> Vec<(String, u64, String)> {
    let of_a_case = |case: &Value| {
        let (name, members) = (case["case"].as_str().expect("a name"), case["members"].as_u64().expect("a number"));
        let figures = case["figures"].as_array().expect("figures").iter();
        let figure = |row: &Value| (name.to_owned(), members, row["figure"].as_str().unwrap_or_default().to_owned());
        figures.map(figure).collect::<Vec<_>>()
    };
    told["cases"].as_array().expect("cases").iter().flat_map(of_a_case).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_programs_are_compared_in_every_case_and_nothing_is_left_of_it() {
    let against = match oracle("two_programs_are_compared") {
        Some(oracle) => oracle.etcd.clone(),
        None => OURS.into(),
    };
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().to_str().expect("temporary paths are UTF-8").to_owned();
    let told = blocking(move || {
        let against = against.to_str().expect("a path in UTF-8");
        json(&["compare", "--against", against, "--rounds", "1", "--quick", "--dir", &path, "--json"])
    });
    let told = told.await;
    let of_a_load = ["requests/s", "server CPU, µs/request", "p50, ms", "p99, ms"];
    let expected: [(&str, u64, &[&str]); 17] = [
        ("idle", 1, &["memory, MB", "CPU, % of a core"]),
        ("put-1", 1, &of_a_load),
        ("put-100", 1, &of_a_load),
        ("put-1000", 1, &of_a_load),
        ("range-100", 1, &of_a_load),
        ("range-1", 1, &of_a_load),
        ("put-100", 3, &of_a_load),
        ("keys-100k", 1, &["memory, MB"]),
        ("keys-1m", 1, &["memory, MB", "list in pages of 500 (60 s at most), s", "kill -9 to first read, s"]),
        (
            "compaction",
            1,
            &["p99 without it, ms", "p99 beside it, ms", "p99 beside it / without it", "the compaction, s"],
        ),
        ("keepalive-100", 1, &of_a_load),
        ("watch-100", 1, &["events/s", "server CPU, µs/event", "paced: p50 delivery, ms", "paced: p99 delivery, ms"]),
        (
            "watchers-50k",
            1,
            &[
                "requests/s without them",
                "requests/s beside them",
                "requests/s lost to them, %",
                "memory, bytes/watcher",
            ],
        ),
        ("catch-up", 1, &["events/s (30 s at most)", "server CPU, µs/event"]),
        ("lease-expiry", 1, &["p99 without it, ms", "p99 beside it, ms", "first one due to last one gone, s"]),
        (
            "snapshot-save",
            1,
            &["bytes of the snapshot, MB", "the snapshot alone, s", "p99 without it, ms", "p99 beside it, ms"],
        ),
        ("leader-kill", 3, &["kill -9 to next write, s"]),
    ];
    let expected: Vec<(String, u64, String)> = expected
        .iter()
        .flat_map(|(case, members, figures)| {
            figures.iter().map(|figure| ((*case).to_owned(), *members, (*figure).to_owned()))
        })
        .collect();
    assert_eq!(figures(&told), expected);
    let rows = told["cases"].as_array().expect("cases").iter().flat_map(|case| case["figures"].as_array());
    for row in rows.flatten() {
        // A short run may use less CPU time than the kernel's clock tick; a thousand watchers may find room that was
        // there before, and cost nothing.
        let figure = row["figure"].as_str().expect("a name");
        if figure.contains("CPU") || figure.contains("lost") || figure.contains("/watcher") {
            continue;
        }
        positive(&row["rounds_ours"][0]);
        positive(&row["rounds_theirs"][0]);
        positive(&row["median"]["ratio"]);
    }
    assert!(is_empty(dir.path()), "directories are removed");
    assert_eq!(processes_of(dir.path()), 0, "servers are stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_compared_with_itself_is_measured_in_both_orders() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().to_str().expect("temporary paths are UTF-8").to_owned();
    let told = blocking(move || {
        let words = ["compare", "--against", OURS, "--binary", OURS, "--quick", "--cases", "range-100", "--json"];
        json(&[&words[..], &["--rounds", "3", "--dir", &path]].concat())
    });
    let told = told.await;
    assert_eq!(told["ours"], told["theirs"]);
    for row in told["cases"][0]["figures"].as_array().expect("figures") {
        assert_eq!(row["rounds_ours"].as_array().map(Vec::len), Some(3), "{row}");
        assert_eq!(row["rounds_theirs"].as_array().map(Vec::len), Some(3), "{row}");
        let Some(found) = row["median"].as_object() else { continue };
        let ratio = positive(&found["ratio"]);
        assert!(found["low"].as_f64() <= Some(ratio) && Some(ratio) <= found["high"].as_f64(), "{row}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_is_announced_printed_and_written_into_a_page() {
    let dir = TempDir::new().expect("a directory");
    let page = dir.path().join("PAGE.md");
    let (begin, end) = ("<!-- quorate bench compare: begin -->", "<!-- quorate bench compare: end -->");
    std::fs::write(&page, format!("above\n{begin}\nold\n{end}\nbelow\n")).expect("a page");
    let without = dir.path().join("README.md");
    std::fs::write(&without, "no markers\n").expect("a page");
    let data = dir.path().join("data");
    std::fs::create_dir(&data).expect("a directory");
    let words = ["compare", "--against", OURS, "--quick", "--rounds", "1", "--cases", "idle", "--dir"];
    let told = blocking({
        let (page, without, data) = (page.clone(), without.clone(), data.clone());
        move || {
            let with = |out: &Path| {
                let paths = [data.to_str(), Some("--out"), out.to_str()].map(|word| word.expect("UTF-8").to_owned());
                [&words[..], &paths.each_ref().map(String::as_str)].concat().join(" ")
            };
            let run = |line: String| bench(&line.split(' ').collect::<Vec<&str>>());
            (run(with(&page)), run(with(&without)))
        }
    });
    let (printed, refused) = told.await;
    let text = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert!(
        printed.status.success() && text.starts_with("plan: 1 rounds of 1 cases on both programs, about "),
        "{text}"
    );
    assert!(text.contains("\nmachine ") && text.contains("\ncase "), "{text}");
    let written = std::fs::read_to_string(&page).expect("the page");
    assert!(written.starts_with(&format!("above\n{begin}\n")), "{written}");
    assert!(written.ends_with(&format!("{end}\nbelow\n")), "{written}");
    assert!(written.contains("| idle | memory, MB | ") && !written.contains("old"), "{written}");
    // Told before the first server starts, not behind the last round.
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stdout.is_empty(), "nothing was measured");
    assert_eq!(std::fs::read_to_string(&without).expect("the page"), "no markers\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_comparison_leaves_nothing_behind() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let dir = TempDir::new().expect("a directory");
        let words = ["bench", "compare", "--against", OURS, "--cases", "idle", "--members", "3", "--dir"];
        let mut child = Command::new(OURS)
            .args(words)
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("our own program starts");
        // Its own command line names the directory too.
        eventually("three members", async || match processes_of(dir.path()) {
            4 => Ok(()),
            count => Err(format!("{count} processes")),
        })
        .await;
        nix::sys::signal::kill(Pid::from_raw(i32::try_from(child.id()).expect("pids fit")), signal).expect("it runs");
        let status = blocking(move || child.wait().expect("it ends")).await;
        assert_eq!(status.code(), Some(code));
        assert_eq!(processes_of(dir.path()), 0);
        assert!(is_empty(dir.path()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_floors_service_ends_with_whoever_started_it() {
    let port = free_port();
    let mut service = Command::new(OURS)
        .args(["bench", "__floor", &port.to_string()])
        .stdin(Stdio::piped())
        .spawn()
        .expect("our own program starts");
    let address = format!("127.0.0.1:{port}");
    eventually("the service", async || {
        std::net::TcpStream::connect(&address).map(drop).map_err(|error| error.to_string())
    })
    .await;
    drop(service.stdin.take());
    let status = blocking(move || service.wait().expect("it ends")).await;
    assert!(status.success(), "{status}");
}
