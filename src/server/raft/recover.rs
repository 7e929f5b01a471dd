//! Whether a recovered log and the checkpoint beside it belong together, before the raft library sees either.

use super::config::Start;
use super::convert;
use super::log::MemoryLog;
use crate::common::failure::Failure;
use crate::proto::raftpb::HardState;

/// The log that was recovered, checked against the checkpoint.
pub fn checked_log(start: Start) -> Result<MemoryLog, Failure> {
    let Start { mut hard_state, base, entries, durable_index, applied, conf_state } = start;
    assert!(durable_index <= applied.0, "applied {} behind the checkpoint's {durable_index}", applied.0);
    let last = base.0 + entries.len() as u64;
    if applied.0 < base.0 || applied.0 > last {
        return Err(Failure::Refused(format!(
            "the database has applied entry {}, but the log holds {} to {last}: the log was lost or is another member's; \
             remove this member from the cluster and add it again",
            applied.0,
            base.0 + 1
        )));
    }
    let mut inside = Vec::with_capacity(entries.len());
    let mut previous = base;
    for entry in entries {
        let (index, term) = (entry.index, entry.term);
        if index != previous.0 + 1 || term < previous.1 || term == 0 {
            return Err(Failure::Refused(format!("log entry {index} of term {term} follows {previous:?}")));
        }
        if index == applied.0 && term != applied.1 {
            return Err(Failure::Refused(format!(
                "the database has applied entry {index} of term {}, but the log holds term {term} there",
                applied.1
            )));
        }
        previous = (index, term);
        inside.push(convert::entry_in(entry).map_err(|error| Failure::Refused(format!("log entry {index}: {error}")))?);
    }
    // Commit alone is not fdatasynced, so the database may be ahead of it (R13).
    hard_state.commit = hard_state.commit.max(applied.0);
    if hard_state.commit > last {
        return Err(Failure::Refused(format!("the log ends at {last}, but {} was committed", hard_state.commit)));
    }
    if hard_state.term < previous.1 {
        // A torn write kept entries of a term and lost the hard state behind them: no vote was given in that term here.
        hard_state = HardState { term: previous.1, vote: 0, ..hard_state };
    }
    let conf_state = convert::conf_state_in(&conf_state)
        .map_err(|error| Failure::Refused(format!("the database's configuration: {error}")))?;
    Ok(MemoryLog::new(convert::hard_state_in(&hard_state), conf_state, base, inside))
}
