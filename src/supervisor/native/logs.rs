//! `logs` and `events`: the socket's streams, as lines.

use std::collections::HashMap;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::Failure;
use super::duration;
use crate::supervisor::control::http_client::Caller;
use crate::supervisor::control::http_client::Lines;
use crate::supervisor::control::messages::Status;
use crate::supervisor::control::query::Query;
use crate::supervisor::output::args::OutputArgs;
use crate::supervisor::output::args::Surroundings;
use crate::supervisor::output::painter::Face;
use crate::supervisor::output::painter::Painter;
use crate::supervisor::output::painter::SYSTEM;
use crate::supervisor::output::painter::Stamp;
use crate::supervisor::output::store::Followed;

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Names, patterns, roles, or all
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines of each process
    #[arg(short = 'n', long, value_name = "COUNT")]
    tail: Option<u64>,
    /// Only lines that are younger than this
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    since: Option<Duration>,
    /// Only lines that match this regular expression
    #[arg(long, value_name = "REGEX")]
    grep: Option<String>,
    /// Only what was printed to standard error, of processes whose outputs are kept apart
    #[arg(long)]
    stderr: bool,
    /// How to show the time
    #[arg(long, value_enum, default_value_t)]
    time: Stamp,
    /// Show logs in JSON, as etcd's and ours, readable: time, level, message, fields
    #[arg(long)]
    pretty: bool,
    /// One JSON object a line
    #[arg(long, conflicts_with = "pretty")]
    json: bool,
}

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// Only the last ones
    #[arg(short = 'n', long, value_name = "COUNT")]
    tail: Option<u64>,
}

pub async fn logs(caller: &Caller, args: &LogsArgs) -> Result<ExitCode, Failure> {
    let mut query = Query::default();
    for name in &args.names {
        query = query.with("name", name);
    }
    if let Some(tail) = args.tail {
        query = query.with("tail", tail);
    }
    if let Some(since) = args.since {
        query = query.with("since_ms", since.as_millis());
    }
    if let Some(grep) = &args.grep {
        query = query.with("grep", grep);
    }
    let query = query.with("stderr", args.stderr).with("follow", args.follow);
    let mut lines = caller.stream(&format!("/v1/logs?{query}")).await?;
    let mut out = std::io::stdout().lock();
    if args.json {
        return copy(&mut lines, &mut out).await;
    }
    let mut screen = Screen::new(caller, args.time, args.pretty).await?;
    while let Some(line) = lines.next().await? {
        if !print(&mut out, &screen.paint(&line)) {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn events(caller: &Caller, args: &EventsArgs) -> Result<ExitCode, Failure> {
    let mut query = Query::default().with("follow", args.follow);
    if let Some(tail) = args.tail {
        query = query.with("tail", tail);
    }
    let mut lines = caller.stream(&format!("/v1/events?{query}")).await?;
    copy(&mut lines, &mut std::io::stdout().lock()).await
}

async fn copy(lines: &mut Lines, out: &mut impl Write) -> Result<ExitCode, Failure> {
    while let Some(line) = lines.next().await? {
        if !print(out, format!("{line}\n").as_bytes()) {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether there is still somebody who reads.
fn print(out: &mut impl Write, bytes: &[u8]) -> bool {
    out.write_all(bytes).and_then(|()| out.flush()).is_ok()
}

/// Paints remembered lines as `up` paints living ones.
pub struct Screen {
    painter: Painter,
    faces: HashMap<String, Face>,
}

impl Screen {
    /// For all processes of the supervisor, so that their names have one width whoever is shown.
    pub async fn new(caller: &Caller, time: Stamp, pretty: bool) -> Result<Screen, Failure> {
        let status: Status = caller.get("/v1/processes?quick=true").await?;
        let style = OutputArgs { time, pretty, ..OutputArgs::default() }.style(&Surroundings::here());
        let names = status.processes.iter().map(|process| process.view.name.as_str());
        let painter = Painter::new(style, names);
        let face = |(name, place): (&str, usize)| (name.to_owned(), painter.face(place, name));
        let views = status.processes.iter().map(|process| (process.view.name.as_str(), process.view.place));
        let faces = views.chain([(SYSTEM, 0)]).map(face).collect();
        Ok(Screen { painter, faces })
    }

    /// The line of a JSON line; what cannot be read is shown as it is.
    pub fn paint(&mut self, line: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        match serde_json::from_str::<Followed>(line) {
            Ok(Followed::Line(line)) => {
                let painter = &self.painter;
                let face = self.faces.entry(line.name.clone()).or_insert_with(|| painter.face(0, &line.name));
                painter.remembered(&mut bytes, face, &line);
            }
            Ok(Followed::Lost { name, lost }) => {
                bytes =
                    self.painter.own(&format!("{lost} lines of {name} were overwritten before they could be shown"));
            }
            Err(_) => bytes = format!("{line}\n").into_bytes(),
        }
        bytes
    }
}

/// The last lines of a process, to be shown with what went wrong.
pub async fn last_lines(caller: &Caller, name: &str, count: usize) -> Vec<String> {
    let query = Query::default().with("name", name).with("tail", count);
    let Ok(mut lines) = caller.stream(&format!("/v1/logs?{query}")).await else { return Vec::new() };
    let mut found = Vec::new();
    while let Ok(Some(line)) = lines.next().await {
        if let Ok(Followed::Line(line)) = serde_json::from_str::<Followed>(&line) {
            found.push(line.text);
        }
    }
    found
}
