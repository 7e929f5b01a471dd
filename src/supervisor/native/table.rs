//! `ps`: the processes as a table, one line, or JSON (supervisor.md 4.5).

use std::io::IsTerminal;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use nix::sys::signal::Signal;

use super::EXIT_PARTIALLY;
use super::EXIT_UNKNOWN;
use super::Failure;
use super::tell;
use crate::supervisor::columns;
use crate::supervisor::columns::Cell;
use crate::supervisor::control::http_client::Caller;
use crate::supervisor::control::messages::ProcessStatus;
use crate::supervisor::control::messages::Status;
use crate::supervisor::control::vocabulary::LastExit;
use crate::supervisor::control::vocabulary::StateName;
use crate::supervisor::procinfo::GroupInfo;
use crate::supervisor::targets::glob;

/// Between two looks of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Home and clear to the end: less flicker than clearing first.
const HOME: &str = "\x1b[H";
const CLEAR_BELOW: &str = "\x1b[J";
const CLEAR_LINE_END: &str = "\x1b[K";

#[derive(Debug, Args)]
pub struct PsArgs {
    /// Only these: names or patterns
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Everything that is known, as JSON
    #[arg(long, conflicts_with_all = ["watch", "short"])]
    json: bool,
    /// Again every second
    #[arg(short, long)]
    watch: bool,
    /// One line
    #[arg(long)]
    short: bool,
}

pub async fn ps(caller: &Caller, args: &PsArgs) -> Result<ExitCode, Failure> {
    loop {
        let mut status: Status = caller.get("/v1/processes").await?;
        let known = status.processes.iter().map(|process| process.view.name.clone()).collect::<Vec<_>>();
        if let Some(unknown) = args.names.iter().find(|word| !known.iter().any(|name| glob(word, name))) {
            let text = format!("unknown process: {unknown} (known: {})", known.join(", "));
            return Err(Failure { text, code: EXIT_UNKNOWN });
        }
        let shown = |process: &ProcessStatus| {
            args.names.is_empty() || args.names.iter().any(|word| glob(word, &process.view.name))
        };
        status.processes.retain(shown);
        let text = if args.json {
            let text = serde_json::to_string_pretty(&status).map_err(|error| Failure::new(error.to_string()))?;
            format!("{text}\n")
        } else if args.short {
            short(&status.processes)
        } else {
            table(&status.processes)
        };
        if !args.watch {
            // A reader that has gone wants no more text.
            let _ = anstream::stdout().write_all(text.as_bytes());
            let ready = status.processes.iter().all(is_as_wanted);
            return Ok(if ready { ExitCode::SUCCESS } else { ExitCode::from(EXIT_PARTIALLY) });
        }
        let text = match std::io::stdout().is_terminal() {
            true => format!("{HOME}{}{CLEAR_BELOW}", text.replace('\n', &format!("{CLEAR_LINE_END}\n"))),
            false => text,
        };
        if std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush()).is_err() {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_EVERY) => {}
            _ = tokio::signal::ctrl_c() => {
                tell("no longer watched");
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

/// Up and ready if it should be up.
fn is_as_wanted(process: &ProcessStatus) -> bool {
    let view = &process.view;
    match view.state {
        StateName::Ready | StateName::Running | StateName::Disabled => true,
        StateName::Exited | StateName::Pending => !view.wanted,
        _ => false,
    }
}

/// `etcd1:ready(leader) etcd2:ready(follower) web:backoff`.
fn short(processes: &[ProcessStatus]) -> String {
    let one = |process: &ProcessStatus| {
        let role = process.member.as_ref().map(|member| format!("({})", member.role)).unwrap_or_default();
        format!("{}:{}{role}", process.view.name, state_word(process.view.state))
    };
    format!("{}\n", processes.iter().map(one).collect::<Vec<_>>().join(" "))
}

const HEADINGS: [&str; 11] =
    ["NAME", "STATE", "PID", "PIDS", "UPTIME", "RESTARTS", "LAST EXIT", "CPU", "RSS", "PORT", "LISTEN"];
const MEMBER_HEADINGS: [&str; 5] = ["ROLE", "MEMBER ID", "TERM", "INDEX", "DB SIZE"];
/// Of `STATE`, which has a colour.
const STATE_COLUMN: usize = 1;

/// Columns without frames, as wide as they must be; those of members only where there are members.
pub fn table(processes: &[ProcessStatus]) -> String {
    let members = processes.iter().any(|process| process.is_member);
    let mut head = HEADINGS.map(Cell::from).to_vec();
    if members {
        head.extend(MEMBER_HEADINGS.map(Cell::from));
    }
    let mut rows = vec![head];
    for process in processes {
        let mut row = cells(process);
        if members {
            row.extend(member_cells(process));
        }
        let mut row: Vec<Cell> = row.into_iter().map(Cell::from).collect();
        row[STATE_COLUMN].colour = state_colour(process.view.state);
        rows.push(row);
    }
    let mut text = columns::aligned(&rows);
    let notes = processes.iter().filter_map(|process| {
        let why = process.view.why.as_ref().or(process.member_error.as_ref())?;
        Some(format!("{}: {why}\n", process.view.name))
    });
    text.extend(notes);
    text
}

fn cells(process: &ProcessStatus) -> Vec<String> {
    let (view, usage) = (&process.view, process.usage.as_ref());
    let none = || "-".to_owned();
    let pid = usage.map(pid);
    let listen = usage.map(|usage| usage.listen.iter().map(listening).collect::<Vec<_>>().join(","));
    vec![
        view.name.clone(),
        state(process),
        pid.or_else(|| view.group.map(|group| group.to_string())).unwrap_or_else(none),
        usage.map_or_else(none, |usage| usage.pids.to_string()),
        view.uptime_ms.map_or_else(none, span),
        view.restarts.to_string(),
        view.last_exit.as_ref().map_or_else(none, last_exit),
        usage.and_then(|usage| usage.cpu_percent).map_or_else(none, |percent| format!("{percent:.1}%")),
        usage.map_or_else(none, |usage| size(usage.rss_bytes)),
        view.port.map_or_else(none, |port| port.to_string()),
        listen.filter(|listen| !listen.is_empty()).unwrap_or_else(none),
    ]
}

/// Addresses of this machine alone are shown by their ports: they are most of what local stacks have.
fn listening(address: &std::net::SocketAddr) -> String {
    match address.ip().is_loopback() {
        true => format!(":{}", address.port()),
        false => address.to_string(),
    }
}

fn member_cells(process: &ProcessStatus) -> Vec<String> {
    match &process.member {
        None => vec!["-".to_owned(); MEMBER_HEADINGS.len()],
        Some(member) => vec![
            member.role.to_string(),
            format!("{:x}", member.member_id),
            member.term.to_string(),
            member.index.to_string(),
            size(u64::try_from(member.db_bytes).unwrap_or_default()),
        ],
    }
}

/// Of the program itself; a star tells of a shell in between.
pub fn pid(usage: &GroupInfo) -> String {
    format!("{}{}", usage.pid, if usage.behind_shell { "*" } else { "" })
}

pub fn state(process: &ProcessStatus) -> String {
    let view = &process.view;
    let word = state_word(view.state);
    match view.state {
        StateName::Backoff => match view.next_start_ms {
            Some(rest) => format!("{word}({})", span(rest)),
            None => word,
        },
        StateName::Paused => format!("{word} {}", span(view.state_ms)),
        _ => word,
    }
}

fn state_word(state: StateName) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(word)) => word,
        _ => format!("{state:?}"),
    }
}

fn state_colour(state: StateName) -> &'static str {
    match state {
        StateName::Ready | StateName::Running => "\x1b[32m",
        StateName::Pending | StateName::Starting | StateName::Stopping | StateName::Backoff => "\x1b[33m",
        StateName::Paused => "\x1b[36m",
        StateName::Unhealthy | StateName::Failed | StateName::Flapping => "\x1b[31m",
        StateName::Exited | StateName::Disabled => "\x1b[90m",
    }
}

/// `0`, `3`, `SIGKILL by pid 12 4s ago`, `SIGTERM requested`.
fn last_exit(exit: &LastExit) -> String {
    let how = match (exit.code, exit.signal) {
        (_, Some(number)) => {
            Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |signal| signal.as_str().to_owned())
        }
        (Some(code), None) => code.to_string(),
        (None, None) => "?".to_owned(),
    };
    let asked = match (&exit.by, exit.asked) {
        (Some(who), _) => format!(" by {who}"),
        (None, true) => " requested".to_owned(),
        (None, false) => String::new(),
    };
    format!("{how}{asked} {} ago", span(exit.ago_ms))
}

/// The two largest units of a time: `3s`, `4m12s`, `2h3m`, `5d1h`.
pub fn span(millis: u64) -> String {
    let seconds = millis / 1000;
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, 0) => format!("{millis}ms"),
        (0, 0, 0, seconds) => format!("{seconds}s"),
        (0, 0, minutes, seconds) => format!("{minutes}m{seconds}s"),
        (0, hours, minutes, _) => format!("{hours}h{minutes}m"),
        (days, hours, ..) => format!("{days}d{hours}h"),
    }
}

/// Binary units, three digits.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 9.95 { format!("{value:.1}{}", UNITS[unit]) } else { format!("{value:.0}{}", UNITS[unit]) }
}

/// A process in this state, for tests.
#[cfg(test)]
pub fn sample(name: &str, state: StateName) -> ProcessStatus {
    let view = crate::supervisor::control::vocabulary::ProcessView {
        name: name.to_owned(),
        place: 0,
        command: "true".to_owned(),
        state,
        state_ms: 3_200,
        wanted: true,
        group: None,
        uptime_ms: None,
        ready_after_ms: None,
        restarts: 0,
        last_exit: None,
        next_start_ms: None,
        port: None,
        why: None,
    };
    ProcessStatus { view, is_member: false, usage: None, member: None, member_error: None }
}

/// A leader, for tests.
#[cfg(test)]
pub fn sample_member(name: &str) -> ProcessStatus {
    let mut member = sample(name, StateName::Ready);
    member.is_member = true;
    member.view.uptime_ms = Some(252_000);
    member.view.port = Some(5000);
    member.view.group = Some(41);
    member.usage = Some(GroupInfo {
        pid: 42,
        behind_shell: true,
        pids: 2,
        cpu_percent: Some(1.25),
        rss_bytes: 30 << 20,
        threads: 9,
        fds: 12,
        listen: vec![([127, 0, 0, 1], 2379).into(), ([0, 0, 0, 0], 2380).into()],
    });
    member.member = Some(crate::supervisor::members::MemberStatus {
        role: crate::supervisor::targets::Role::Leader,
        member_id: 0xabc,
        leader_id: 0xabc,
        term: 2,
        index: 9,
        applied_index: 9,
        db_bytes: 20_480,
        version: "3.6.0".to_owned(),
        errors: Vec::new(),
    });
    member
}

#[cfg(test)]
mod tests {
    use super::sample as process;
    use super::*;

    fn plain(text: &str) -> String {
        crate::supervisor::output::escapes::strip(text)
    }

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let mut web = process("网站", StateName::Failed);
        web.view.why = Some("fork/exec: no".to_owned());
        web.view.last_exit = Some(LastExit { code: Some(3), signal: None, asked: false, by: None, ago_ms: 12_000 });
        let text = plain(&table(&[sample_member("etcd1"), web]));
        let expected = "\
NAME   STATE   PID  PIDS  UPTIME  RESTARTS  LAST EXIT  CPU   RSS    PORT  LISTEN              ROLE    MEMBER ID  TERM  INDEX  DB SIZE
etcd1  ready   42*  2     4m12s   0         -          1.2%  30MiB  5000  :2379,0.0.0.0:2380  leader  abc        2     9      20KiB
网站   failed  -    -     -       0         3 12s ago  -     -      -     -                   -       -          -     -      -
网站: fork/exec: no
";
        assert_eq!(text, expected);
        let text = plain(&table(&[process("a", StateName::Paused)]));
        assert!(text.contains("paused 3s") && !text.contains("ROLE"), "{text}");
    }

    #[test]
    fn one_line_says_the_states_and_roles() {
        assert_eq!(
            short(&[sample_member("etcd1"), process("web", StateName::Backoff)]),
            "etcd1:ready(leader) web:backoff\n"
        );
    }

    #[test]
    fn what_should_be_up_must_be_ready() {
        let as_wanted = |state, wanted| {
            let mut process = process("a", state);
            process.view.wanted = wanted;
            is_as_wanted(&process)
        };
        assert!(as_wanted(StateName::Ready, true) && as_wanted(StateName::Running, true));
        assert!(as_wanted(StateName::Exited, false) && as_wanted(StateName::Disabled, false));
        for state in [StateName::Starting, StateName::Paused, StateName::Failed, StateName::Exited, StateName::Backoff]
        {
            assert!(!as_wanted(state, true), "{state:?}");
        }
    }

    #[test]
    fn exits_times_and_sizes_are_short() {
        let exit = |code, signal, asked, by: Option<&str>| {
            last_exit(&LastExit { code, signal, asked, by: by.map(str::to_owned), ago_ms: 4_000 })
        };
        assert_eq!(exit(Some(0), None, false, None), "0 4s ago");
        assert_eq!(exit(None, Some(9), true, Some("pid 12")), "SIGKILL by pid 12 4s ago");
        assert_eq!(exit(None, Some(15), true, None), "SIGTERM requested 4s ago");
        assert_eq!(exit(None, Some(63), false, None), "signal 63 4s ago");
        let spans = [0, 999, 1_000, 61_000, 3_661_000, 90_000_000].map(span);
        assert_eq!(spans, ["0ms", "999ms", "1s", "1m1s", "1h1m", "1d1h"]);
        let sizes = [0, 1023, 1024, 1_500_000, 1_048_000, 1 << 30, u64::MAX].map(size);
        assert_eq!(sizes, ["0B", "1023B", "1.0KiB", "1.4MiB", "1.0MiB", "1.0GiB", "16384PiB"]);
    }
}
