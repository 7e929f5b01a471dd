//! What people and programs write: command lines, URLs, durations, Procfiles, transactions.

use std::ffi::OsString;
use std::io::Cursor;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::sync::Mutex;

use bytes::Bytes;

use crate::common::go_duration;
use crate::common::urls;
use crate::common::urls::Url;
use crate::ctl::console::Console;
use crate::ctl::flags::Values;
use crate::fuzz::fuzz;
use crate::server::config::Config;
use crate::server::config::Personality;
use crate::server::config::initial_cluster;
use crate::supervisor::dotenv;
use crate::supervisor::flags::Flags;
use crate::supervisor::procfile;

fn corpus(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn text(input: &[u8]) -> String {
    String::from_utf8_lossy(input).into_owned()
}

/// F10.
#[test]
fn procfiles() {
    let valid = ["web: run -p $PORT\n# no: entry\n\ndb:  sleep 9\r\n", "a:b", ":x\nx:\n", "ü ö: ä"];
    fuzz("fuzz::texts::procfiles", &corpus(&valid), |input| {
        let text = text(input);
        for (place, entry) in procfile::parse(&text).into_iter().enumerate() {
            assert_eq!(entry.place, place);
            assert!(!entry.name.is_empty() && !entry.name.contains('\n') && text.contains(&entry.command));
        }
    });
}

#[test]
fn dotenvs() {
    let valid = ["A=1\nexport B=\"x\\n$A\" # c\nC='y'\n", "D=${A:-z}\nE: yaml\n", "F=\"open\nG=\\"];
    fuzz("fuzz::texts::dotenvs", &corpus(&valid), |input| {
        if let Err(reason) = dotenv::parse(&text(input)) {
            assert!(!reason.what.is_empty());
        }
    });
}

/// What is written of a duration is read as the same one.
#[test]
fn durations() {
    let valid =
        ["1h2m3.5s", "-1.5ms", "100us", "9223372036854775807ns", "+0", "1µs", ".5h", "2562047h47m16.854775807s"];
    fuzz("fuzz::texts::durations", &corpus(&valid), |input| {
        let text = text(input);
        let _ = go_duration::parse_signed(&text);
        if let Ok(duration) = go_duration::parse(&text) {
            let written = go_duration::format(duration);
            assert_eq!(go_duration::parse(&written), Ok(duration), "{text} is {written}");
        }
    });
}

/// F12.
#[test]
fn urls_and_clusters() {
    let valid = [
        "http://127.0.0.1:2379,https://h:1",
        "unix:///tmp/s",
        "unix://localhost:7",
        "http://[::1]:80",
        "m1=http://h:1,m2=http://h:2,m1=http://h:3",
        "http://user:pass@h:1/path?q#f",
    ];
    fuzz("fuzz::texts::urls_and_clusters", &corpus(&valid), |input| {
        let text = text(input);
        let _ = initial_cluster::parse(&text);
        let _ = urls::split_host_port(&text);
        for url in urls::parse_list(&text).unwrap_or_default() {
            let written = url.to_string();
            assert_eq!(Url::parse(&written).map(|url| url.to_string()), Ok(written));
            let _ = (url.address(), url.host(), url.port(), url.is_bindable());
        }
    });
}

/// Words are separated by line ends.
fn words(input: &[u8]) -> Vec<Vec<u8>> {
    input.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
}

#[test]
fn command_lines_of_a_member() {
    let valid = [
        "--name\nm1\n--data-dir=/d\n-heartbeat-interval\n100\n--election-timeout\n1000",
        "--listen-client-urls\nhttp://127.0.0.1:1\n--advertise-client-urls\nhttp://127.0.0.1:1",
        "--initial-cluster\nm1=http://h:1\n--initial-advertise-peer-urls=http://h:1\n--feature-gates\nAllAlpha=true",
        "--auto-compaction-retention\n10m\n--auto-compaction-mode=periodic\n--log-format\nconsole\n--pre-vote=false",
        "\u{2013}name\nx\n--quota-backend-bytes=-1\n--cors\n*,h",
    ];
    fuzz("fuzz::texts::command_lines_of_a_member", &corpus(&valid), |input| {
        let all: Vec<OsString> = words(input).into_iter().map(OsString::from_vec).collect();
        for personality in [Personality::Etcd, Personality::Native] {
            if let Err(exit) = Config::from_args(&all, std::iter::empty(), personality) {
                assert!(exit.code <= 2 && !(exit.stdout.is_empty() && exit.stderr.is_empty()));
            }
        }
    });
}

#[test]
fn command_lines_of_the_supervisor() {
    let valid =
        ["-f\nProcfile\n-p\n8555\nstart\nweb", "--basedir=/x\n-exit-on-error\ncheck", "-set-ports=false\nrun\nlist"];
    fuzz("fuzz::texts::command_lines_of_the_supervisor", &corpus(&valid), |input| {
        let all: Vec<String> = words(input).iter().map(|word| text(word)).collect();
        let _ = Flags::parse(&all, Some("8555"));
        let _ = Flags::parse(&all, None);
    });
}

#[test]
fn command_lines_of_the_client() {
    let commands = [&crate::ctl::put::COMMAND, &crate::ctl::get::COMMAND, &crate::ctl::del::COMMAND];
    let valid = [
        "--prefix\nkey\n--limit=5\n--rev\n7",
        "key\nvalue\n--prev-kv\n--lease=7b",
        "-w\njson\n--\n--key",
        "--order=DESCEND\na\nb",
    ];
    fuzz("fuzz::texts::command_lines_of_the_client", &corpus(&valid), |input| {
        let all: Vec<Bytes> = words(input).into_iter().map(Bytes::from).collect();
        for command in commands {
            let flags: Vec<_> = command.flags.iter().collect();
            let _ = Values::parse(&flags, &all);
        }
    });
}

/// F13.
#[test]
fn interactive_transactions() {
    let valid = [
        "mod(\"a\") > \"0\"\nval(\"b\") = \"x\\n\"\n\nput a \"b c\" --lease=1\ndel 'k' --prefix\n\nget a --rev 3 -w json\n\n",
        "lease(\"k\") != \"7b\"\n\n\n\n",
        "c(`raw`) < \"-1\"\n\nput \"\\x00\\u00e4\" '\\'\n\n\n",
    ];
    fuzz("fuzz::texts::interactive_transactions", &corpus(&valid), |input| {
        let sink: Arc<Mutex<dyn std::io::Write + Send>> = Arc::new(Mutex::new(std::io::sink()));
        let mut console = Console::new(Box::new(Cursor::new(input.to_vec())), Box::new(std::io::sink()), sink);
        let _ = crate::ctl::txn::read(&mut console, false);
    });
}
