//! What is kept of a run, so that it can be read by people and judged again.
//!
//! ```text
//! run.json        what was run, the command that runs it again, findings that are not in the history, hashes
//! schedule.txt    what was done when
//! history.jsonl   one call a line: times, connection, the call and its answer as text and as protobuf in base64
//! watches.jsonl   one watch a line: its connection, what it asked for, everything it was told and when
//! renewals.jsonl  one renewal of a lease a line
//! locks.jsonl     one call for a lock, or for its end, a line
//! log.jsonl       the requests of the committed log, in the same two forms
//! m1.log m1/      what a member printed and kept; m1/kept are links to all segments of its log
//! ```

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;
use std::io::BufWriter;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use prost::Message;
use serde::Deserialize;
use serde::Serialize;

use crate::common::answer::Answer;
use crate::proto::etcdserverpb::WatchCreateRequest;
use crate::proto::etcdserverpb::WatchResponse;
use crate::torture::checker::Fingerprint;
use crate::torture::checker::Operation;
use crate::torture::checker::Outcome;
use crate::torture::checker::leasing::Renewal;
use crate::torture::checker::locking::LockCall;
use crate::torture::checker::model::Request;
use crate::torture::checker::model::Response;
use crate::torture::checker::watching::Told;
use crate::torture::checker::watching::Watch;
use crate::torture::runner::Run;
use crate::torture::runner::Setup;

const RUN: &str = "run.json";
const SCHEDULE: &str = "schedule.txt";
const HISTORY: &str = "history.jsonl";
const WATCHES: &str = "watches.jsonl";
const RENEWALS: &str = "renewals.jsonl";
const LOCKS: &str = "locks.jsonl";
const LOG: &str = "log.jsonl";

/// A run as it can be judged.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Kept {
    pub seed: u64,
    /// The command that makes the same choices again.
    pub again: String,
    pub binary: PathBuf,
    pub members: usize,
    pub clients: usize,
    /// Flags of every member.
    pub flags: Vec<String>,
    /// Seconds of faults.
    pub seconds: f64,
    pub interrupted: bool,
    /// All served again at the end.
    pub settled: bool,
    pub faults: BTreeMap<String, u64>,
    /// Terms in which somebody led.
    pub terms: usize,
    pub log_entries: usize,
    /// An entry that no log has.
    pub gap: Option<u64>,
    pub findings: Vec<String>,
    /// What the logs cannot all say.
    pub conflicts: Vec<String>,
    /// Member, revision, compact revision, hash.
    hashes: Vec<(u64, i64, i64, u32)>,
    #[serde(skip)]
    pub fingerprints: Vec<Fingerprint>,
    #[serde(skip)]
    pub trace: Vec<String>,
    #[serde(skip)]
    pub operations: Vec<Operation>,
    #[serde(skip)]
    pub watches: Vec<Watch>,
    #[serde(skip)]
    pub renewals: Vec<Renewal>,
    #[serde(skip)]
    pub locks: Vec<LockCall>,
    #[serde(skip)]
    pub log: Vec<Request>,
}

/// A line of the history.
#[derive(Serialize, Deserialize)]
struct Line {
    connection: u64,
    start: u64,
    end: u64,
    /// For people; `request` is what counts.
    call: String,
    /// replied, failed, refused or unknown.
    outcome: String,
    answer: String,
    request: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    response: Option<String>,
}

/// A line of the watches.
#[derive(Serialize, Deserialize)]
struct WatchLine {
    connection: u64,
    /// For people, as in `Line`.
    watch: String,
    request: String,
    /// Time, what people read, protobuf.
    told: Vec<(u64, String, String)>,
}

/// A line of the log.
#[derive(Serialize, Deserialize)]
struct LogLine {
    call: String,
    request: String,
}

impl Kept {
    pub fn of(setup: &Setup, run: Run, again: String) -> Kept {
        let print = |print: &Fingerprint| (print.member, print.revision, print.compact_revision, print.hash);
        Kept {
            seed: setup.seed,
            again,
            binary: setup.binary.clone(),
            members: setup.members,
            clients: setup.clients,
            flags: run.flags,
            seconds: run.lasted.as_secs_f64(),
            interrupted: run.interrupted,
            settled: run.settled,
            faults: run.faults.iter().map(|(kind, count)| (kind.to_string(), *count)).collect(),
            terms: run.logs.terms(),
            log_entries: run.logs.entries.len(),
            gap: run.logs.gap(),
            findings: run.findings,
            conflicts: run.logs.conflicts.clone(),
            hashes: run.fingerprints.iter().map(print).collect(),
            fingerprints: run.fingerprints,
            trace: run.trace,
            operations: run.operations,
            watches: run.watches,
            renewals: run.renewals,
            locks: run.locks,
            log: run.logs.requests(),
        }
    }

    pub fn write(&self, dir: &Path) -> Result<(), String> {
        let told = |name: &'static str| move |error: std::io::Error| format!("cannot write {name}: {error}");
        let run = serde_json::to_string_pretty(self).map_err(|error| error.to_string())?;
        std::fs::write(dir.join(RUN), run + "\n").map_err(told(RUN))?;
        std::fs::write(dir.join(SCHEDULE), self.trace.join("\n") + "\n").map_err(told(SCHEDULE))?;
        let lines = self.operations.iter().map(Line::of);
        write_lines(&dir.join(HISTORY), lines).map_err(told(HISTORY))?;
        let lines = self.watches.iter().map(WatchLine::of);
        write_lines(&dir.join(WATCHES), lines).map_err(told(WATCHES))?;
        write_lines(&dir.join(RENEWALS), self.renewals.iter()).map_err(told(RENEWALS))?;
        write_lines(&dir.join(LOCKS), self.locks.iter()).map_err(told(LOCKS))?;
        let lines =
            self.log.iter().map(|request| LogLine { call: brief(request), request: encode(&request.to_bytes()) });
        write_lines(&dir.join(LOG), lines).map_err(told(LOG))
    }

    pub fn read(dir: &Path) -> Result<Kept, String> {
        let told = |error: std::io::Error| format!("cannot read {}: {error}", dir.join(RUN).display());
        let run = std::fs::read(dir.join(RUN)).map_err(told)?;
        let mut kept: Kept =
            serde_json::from_slice(&run).map_err(|error| format!("{}: {error}", dir.join(RUN).display()))?;
        let print = |(member, revision, compact_revision, hash): &(u64, i64, i64, u32)| Fingerprint {
            member: *member,
            revision: *revision,
            compact_revision: *compact_revision,
            hash: *hash,
        };
        kept.fingerprints = kept.hashes.iter().map(print).collect();
        kept.operations = read_lines(&dir.join(HISTORY), Line::operation)?;
        kept.watches = read_lines(&dir.join(WATCHES), WatchLine::watch)?;
        kept.renewals = read_lines(&dir.join(RENEWALS), Some)?;
        kept.locks = read_lines(&dir.join(LOCKS), Some)?;
        kept.log = read_lines(&dir.join(LOG), |line: LogLine| decode_request(&line.request))?;
        Ok(kept)
    }
}

fn write_lines<T: Serialize>(path: &Path, lines: impl Iterator<Item = T>) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for line in lines {
        serde_json::to_writer(&mut file, &line)?;
        file.write_all(b"\n")?;
    }
    file.flush()
}

fn read_lines<L, T>(path: &Path, read: impl Fn(L) -> Option<T>) -> Result<Vec<T>, String>
where
    L: for<'a> Deserialize<'a>,
{
    let told = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let file = BufReader::new(File::open(path).map_err(told)?);
    let mut all = Vec::new();
    for (line, number) in file.lines().zip(1..) {
        let line = line.map_err(told)?;
        let parsed = serde_json::from_str(&line).ok().and_then(&read);
        all.push(parsed.ok_or_else(|| format!("{}:{number} is not a line of a run", path.display()))?);
    }
    Ok(all)
}

fn brief(what: &impl Debug) -> String {
    format!("{what:?}")
}

fn encode(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

fn decode_request(text: &str) -> Option<Request> {
    Request::from_bytes(BASE64_STANDARD.decode(text).ok()?.into())
}

impl Line {
    fn of(call: &Operation) -> Line {
        let (outcome, answer, response) = match &call.outcome {
            Outcome::Replied(response) => ("replied", brief(response), Some(encode(&response.to_bytes()))),
            Outcome::Failed(answer) => ("failed", answer.to_string(), None),
            Outcome::Refused => ("refused", String::new(), None),
            Outcome::Unknown => ("unknown", String::new(), None),
        };
        Line {
            connection: call.connection,
            start: call.start,
            end: call.end,
            call: brief(&call.request),
            outcome: outcome.to_owned(),
            answer,
            request: encode(&call.request.to_bytes()),
            response,
        }
    }

    fn operation(line: Line) -> Option<Operation> {
        let outcome = match line.outcome.as_str() {
            "replied" => {
                let bytes = BASE64_STANDARD.decode(line.response?).ok()?;
                Outcome::Replied(Response::from_bytes(bytes.into())?)
            }
            "failed" => Outcome::Failed(Answer::from_text(&line.answer)?),
            "refused" => Outcome::Refused,
            "unknown" => Outcome::Unknown,
            _ => return None,
        };
        let request = decode_request(&line.request)?;
        Some(Operation { connection: line.connection, start: line.start, end: line.end, request, outcome })
    }
}

impl WatchLine {
    fn of(watch: &Watch) -> WatchLine {
        let told = watch.told.iter().map(|told| {
            let read = WatchResponse::decode(told.response.clone());
            (
                told.time,
                read.map_or_else(|error| error.to_string(), |response| brief(&response)),
                encode(&told.response),
            )
        });
        WatchLine {
            connection: watch.connection,
            watch: brief(&watch.request),
            request: encode(&watch.request.encode_to_vec()),
            told: told.collect(),
        }
    }

    fn watch(line: WatchLine) -> Option<Watch> {
        let bytes = BASE64_STANDARD.decode(line.request).ok()?;
        let request = WatchCreateRequest::decode(bytes.as_slice()).ok()?;
        let told = line.told.into_iter().map(|(time, _, response)| {
            let response = BASE64_STANDARD.decode(response).ok()?.into();
            Some(Told { time, response })
        });
        Some(Watch { connection: line.connection, request, told: told.collect::<Option<_>>()? })
    }
}

/// A new directory for one run, below `parent` or where temporary files go.
pub fn fresh_dir(parent: Option<&Path>, seed: u64) -> Result<PathBuf, String> {
    let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
    let told = |error: std::io::Error| format!("cannot make a directory in {}: {error}", parent.display());
    std::fs::create_dir_all(&parent).map_err(told)?;
    // Members get it in their flags, and run elsewhere for all we know.
    let parent = std::fs::canonicalize(&parent).map_err(told)?;
    for number in 0..u32::MAX {
        let path = parent.join(format!("quorate-torture-{seed}-{}-{number}", std::process::id()));
        match std::fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            // Left by a process that had our id.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(told(error)),
        }
    }
    Err(format!("there are too many runs in {}", parent.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::CompactionRequest;
    use crate::proto::etcdserverpb::PutRequest;
    use crate::proto::etcdserverpb::PutResponse;
    use crate::proto::etcdserverpb::RangeRequest;
    use crate::torture::checker::locking::Said;

    #[test]
    fn a_kept_run_is_read_back_as_it_was() {
        let put = Request::Put(PutRequest { key: "k".into(), value: "v:3".into(), ..PutRequest::default() });
        let call = |outcome| Operation { connection: 3, start: 5, end: 9, request: put.clone(), outcome };
        let mut operations = vec![
            call(Outcome::Replied(Response::Put(PutResponse::default()))),
            call(Outcome::Failed(Answer::FutureRevision)),
            call(Outcome::Refused),
            call(Outcome::Unknown),
        ];
        operations[1].request = Request::Compact(CompactionRequest { revision: 4, physical: true });
        operations[2].request = Request::Range(RangeRequest { key: "a".into(), ..RangeRequest::default() });
        let print = (1, 7, -1, 9);
        let kept = Kept {
            seed: 4,
            operations,
            log: vec![put],
            hashes: vec![print],
            findings: vec!["one".to_owned()],
            watches: vec![Watch {
                connection: 5,
                request: WatchCreateRequest { key: "k".into(), start_revision: 3, ..WatchCreateRequest::default() },
                told: vec![Told {
                    time: 8,
                    response: WatchResponse { watch_id: 2, ..WatchResponse::default() }.encode_to_vec().into(),
                }],
            }],
            renewals: vec![Renewal { connection: 1, start: 2, end: 3, lease: 4, ttl: 5 }],
            locks: [
                Said::Granted { revision: 3, created: None },
                Said::Elected { created: 4 },
                Said::Not("no".to_owned()),
            ]
            .map(|said| LockCall { start: 1, end: 2, key: "lock/a/1".to_owned(), said })
            .to_vec(),
            ..Kept::default()
        };
        let dir = tempfile::tempdir().unwrap();
        kept.write(dir.path()).unwrap();
        let read = Kept::read(dir.path()).unwrap();
        assert_eq!(format!("{:?}", read.operations), format!("{:?}", kept.operations));
        assert_eq!((&read.watches, &read.renewals, &read.locks), (&kept.watches, &kept.renewals, &kept.locks));
        assert_eq!((read.seed, &read.log, &read.findings), (4, &kept.log, &kept.findings));
        assert_eq!(read.fingerprints, [Fingerprint { member: 1, revision: 7, compact_revision: -1, hash: 9 }]);
    }

    #[test]
    fn what_is_no_run_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Kept::read(dir.path()).unwrap_err().contains(RUN));
        Kept::default().write(dir.path()).unwrap();
        std::fs::write(dir.path().join(HISTORY), "{}\n").unwrap();
        assert!(Kept::read(dir.path()).unwrap_err().contains("history.jsonl:1"));
    }
}
