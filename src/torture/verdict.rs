//! All findings of a run: what was seen while it ran, what the logs say, what the checker finds.

use crate::torture::checker;
use crate::torture::checker::History;
use crate::torture::checker::Operation;
use crate::torture::checker::Outcome;
use crate::torture::checker::Violation;
use crate::torture::checker::unlogged;
use crate::torture::files::Kept;

/// Acknowledged writes, without which a run says little.
const WRITES_MIN: usize = 20;

/// What was found.
#[derive(Debug, Default)]
pub struct Verdict {
    pub findings: Vec<String>,
    /// What could not be judged, or says little.
    pub remarks: Vec<String>,
}

impl Verdict {
    pub fn of(kept: &Kept) -> Verdict {
        let mut verdict = Verdict { findings: kept.findings.clone(), remarks: Vec::new() };
        verdict.findings.extend(kept.conflicts.iter().cloned());
        verdict.judge(kept);
        if kept.interrupted {
            verdict.remarks.push("it was interrupted; what there was by then is judged".to_owned());
        }
        if !kept.settled {
            verdict.remarks.push(
                "not every member served at the end, so hashes were not compared, and writes that were \
                 acknowledged last may be missing in the logs without being lost"
                    .to_owned(),
            );
        }
        let writes = kept.operations.iter().filter(|call| is_acknowledged_write(call)).count();
        if writes < WRITES_MIN {
            verdict.remarks.push(format!("only {writes} writes were acknowledged: this run says little"));
        }
        verdict
    }

    fn judge(&mut self, kept: &Kept) {
        let operations = kept.operations.clone();
        let fingerprints = kept.fingerprints.clone();
        if let Some(gap) = kept.gap {
            self.remarks.push(format!(
                "no member's log has entry {gap} any more: replies were held against each other, not against the log"
            ));
            let found = unlogged::check(&operations, &fingerprints);
            return self.findings.extend(found);
        }
        let history = History {
            operations,
            log: kept.log.clone(),
            fingerprints,
            tail_unknown: !kept.settled,
            watches: kept.watches.clone(),
            renewals: kept.renewals.clone(),
            locks: kept.locks.clone(),
            leases_expire: true,
        };
        let violations = checker::check(&history);
        self.findings.extend(violations.iter().map(|violation| told(violation, &history)));
    }
}

fn is_acknowledged_write(call: &Operation) -> bool {
    !matches!(call.request, checker::model::Request::Range(_)) && matches!(call.outcome, Outcome::Replied(_))
}

/// The violation with the operation that it speaks of.
fn told(violation: &Violation, history: &History) -> String {
    let mut text = violation.to_string();
    if let Some(call) = violation.operation().map(|at| &history.operations[at]) {
        text.push_str(&format!(
            "\n  connection {}, {:.6} s to {:.6} s: {:?}\n  {:?}",
            call.connection,
            seconds(call.start),
            seconds(call.end),
            call.request,
            call.outcome
        ));
    }
    if let Violation::Phantom { entry } = violation {
        text.push_str(&format!("\n  {:?}", history.log[*entry]));
    }
    text
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}
