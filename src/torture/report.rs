//! What is told of a run: in plain words, or as one JSON object.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use serde_json::json;

use crate::torture::checker::Outcome;
use crate::torture::checker::locking::LockCall;
use crate::torture::checker::locking::Said;
use crate::torture::checker::model::Request;
use crate::torture::files::Kept;
use crate::torture::verdict::Verdict;

/// Findings that are printed whole; the others are counted, and are in the kept directory.
const TOLD_MAX: usize = 10;
/// A longer finding is cut: a reply may hold every key of the run.
const TOLD_CHARS_MAX: usize = 4_000;

/// A judged run.
pub struct Report<'a> {
    pub kept: &'a Kept,
    pub verdict: &'a Verdict,
    /// Where it is, if it was kept.
    pub dir: Option<&'a Path>,
}

/// Calls of one kind by what became of them.
#[derive(Default)]
struct Counts {
    replied: usize,
    failed: usize,
    refused: usize,
    unknown: usize,
}

impl Counts {
    fn all(&self) -> usize {
        self.replied + self.failed + self.refused + self.unknown
    }
}

impl Report<'_> {
    fn counts(&self) -> BTreeMap<&'static str, Counts> {
        let mut counts: BTreeMap<&'static str, Counts> = BTreeMap::new();
        for call in &self.kept.operations {
            let kind = match &call.request {
                Request::Put(_) => "put",
                Request::DeleteRange(_) => "delete",
                Request::Txn(_) => "txn",
                Request::Compact(_) => "compaction",
                Request::LeaseGrant(_) => "lease grant",
                Request::LeaseRevoke(_) => "lease revoke",
                Request::Range(range) if range.serializable => "serializable range",
                Request::Range(_) => "linearizable range",
            };
            let counts = counts.entry(kind).or_default();
            match &call.outcome {
                Outcome::Replied(_) => counts.replied += 1,
                Outcome::Failed(_) => counts.failed += 1,
                Outcome::Refused => counts.refused += 1,
                Outcome::Unknown => counts.unknown += 1,
            }
        }
        counts
    }

    pub fn text(&self) -> String {
        let kept = self.kept;
        let mut text = String::new();
        let mut line = |words: String| {
            text.push_str(&words);
            text.push('\n');
        };
        line(format!(
            "seed {}: {} members of {}, {} clients, {:.0} s",
            kept.seed,
            kept.members,
            kept.binary.display(),
            kept.clients,
            kept.seconds
        ));
        line(format!("members' flags: {}", kept.flags.join(" ")));
        let faults: Vec<String> = kept.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        let faults = if faults.is_empty() { "none".to_owned() } else { faults.join(", ") };
        line(format!("faults: {faults}; terms with a leader: {}", kept.terms));
        line(format!(
            "requests: {:<20} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "", "sent", "answered", "error", "refused", "unknown"
        ));
        for (kind, counts) in self.counts() {
            line(format!(
                "          {kind:<20} {:>9} {:>9} {:>9} {:>9} {:>9}",
                counts.all(),
                counts.replied,
                counts.failed,
                counts.refused,
                counts.unknown
            ));
        }
        line(self.checked());
        for remark in &self.verdict.remarks {
            line(format!("note: {remark}"));
        }
        match self.verdict.findings.len() {
            0 => line("found: nothing".to_owned()),
            count => line(format!("found: {count}")),
        }
        for (finding, number) in self.verdict.findings.iter().zip(1..).take(TOLD_MAX) {
            line(format!("{number}. {}", cut(finding)));
        }
        if self.verdict.findings.len() > TOLD_MAX {
            line(format!("and {} more", self.verdict.findings.len() - TOLD_MAX));
        }
        if let Some(dir) = self.dir {
            line(format!("kept: {}", dir.display()));
            line(format!("judge it again: quorate torture --judge {}", dir.display()));
        }
        if !self.verdict.findings.is_empty() {
            line(format!("run the same seed again: {}", kept.again));
        }
        text
    }

    /// What the verdict rests on.
    fn checked(&self) -> String {
        let kept = self.kept;
        let hashes = match kept.fingerprints.first() {
            Some(first) => format!("; HashKV of {} members at revision {}", kept.fingerprints.len(), first.revision),
            None => String::new(),
        };
        format!(
            "checked: {} calls against {} entries of the members' logs: acknowledged writes there once, every reply as \
             the log has it, reads not stale, no connection going back; {} watches told {} times: every change once, in \
             order, whole; {} renewals: no lease over early; {} calls for locks, {} of \
             them granted: never two holders{hashes}",
            kept.operations.len(),
            kept.log_entries,
            kept.watches.len(),
            self.told(),
            kept.renewals.len(),
            kept.locks.len(),
            self.granted()
        )
    }

    fn told(&self) -> usize {
        self.kept.watches.iter().map(|watch| watch.told.len()).sum()
    }

    /// Locks and elections that somebody got.
    fn granted(&self) -> usize {
        let got = |call: &&LockCall| matches!(call.said, Said::Granted { .. } | Said::Elected { .. });
        self.kept.locks.iter().filter(got).count()
    }

    pub fn json(&self) -> String {
        let kept = self.kept;
        let operation = |(kind, counts): (&str, Counts)| {
            let Counts { replied, failed, refused, unknown } = counts;
            let value = json!({"replied": replied, "failed": failed, "refused": refused, "unknown": unknown});
            (kind.to_owned(), value)
        };
        let operations: serde_json::Map<String, Value> = self.counts().into_iter().map(operation).collect();
        let hashes: Vec<Value> = kept
            .fingerprints
            .iter()
            .map(|print| json!({"member": print.member, "revision": print.revision, "hash": print.hash}))
            .collect();
        let report = json!({
            "seed": kept.seed,
            "binary": kept.binary.display().to_string(),
            "members": kept.members,
            "clients": kept.clients,
            "flags": kept.flags,
            "seconds": kept.seconds,
            "interrupted": kept.interrupted,
            "settled": kept.settled,
            "faults": kept.faults,
            "terms": kept.terms,
            "log_entries": kept.log_entries,
            "operations": operations,
            "watches": kept.watches.len(),
            "watch_responses": self.told(),
            "renewals": kept.renewals.len(),
            "lock_calls": kept.locks.len(),
            "locks_granted": self.granted(),
            "hashes": hashes,
            "notes": self.verdict.remarks,
            "findings": self.verdict.findings,
            "kept": self.dir.map(|dir| dir.display().to_string()),
            "again": kept.again,
        });
        format!("{report:#}\n")
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(TOLD_CHARS_MAX) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text.to_owned(),
    }
}
