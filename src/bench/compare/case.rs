//! The cases that programs are compared in, what each yields, and what we want of it.

use clap::ValueEnum;
use serde::Serialize;

/// One case. Each starts on fresh servers with an empty directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// Nothing to do
    Idle,
    /// Puts from one client
    #[value(name = "put-1")]
    Put1,
    /// Puts from 100 clients on 10 connections
    #[value(name = "put-100")]
    Put100,
    /// Puts from 1000 clients on 100 connections
    #[value(name = "put-1000")]
    Put1000,
    /// Linearizable ranges of one key from 100 clients on 10 connections
    #[value(name = "range-100")]
    Range100,
    /// Linearizable ranges of one key from one client
    #[value(name = "range-1")]
    Range1,
    /// Puts from 100 clients, first without and then beside a compaction of 500,000 superseded revisions
    Compaction,
    /// Memory after 100,000 keys
    #[value(name = "keys-100k")]
    Keys100k,
    /// A million keys: memory, a list in pages, kill -9 and the way back
    #[value(name = "keys-1m")]
    Keys1m,
    /// Lease renewals from 100 clients on 10 connections
    #[value(name = "keepalive-100")]
    KeepAlive100,
    /// 100 streams of 100 watchers on one key: puts as fast as they go, then at a pace that both keep up with
    #[value(name = "watch-100")]
    Watch100,
    /// 50,000 watchers on distinct keys: memory, and what they cost puts on other keys
    #[value(name = "watchers-50k")]
    Watchers50k,
    /// A watcher from the first revision on, over a million revisions
    CatchUp,
    /// 10,000 leases with a key each that expire in the same second: puts meanwhile, and when the last one is gone
    LeaseExpiry,
    /// A snapshot of a database of 1 GB, first alone and then beside puts
    SnapshotSave,
    /// kill -9 for the leader of three members, five times: when the next write succeeds
    LeaderKill,
}

/// A case on clusters of so many members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial {
    pub case: Case,
    pub members: usize,
}

/// What a case is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    RequestsPerSecond,
    CpuMicros,
    P50,
    P99,
    Memory,
    CpuShare,
    List,
    Restart,
    P99Before,
    P99Meanwhile,
    Slowdown,
    Compaction,
    EventsPerSecond,
    CpuMicrosEvent,
    DeliveryP50,
    DeliveryP99,
    CatchUp,
    Before,
    Meanwhile,
    Lost,
    WatcherBytes,
    AllGone,
    Saved,
    Snapshot,
    Failover,
}

/// What the tables of issues 4 and 5 ask for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    RatioAtMost(f64),
    RatioAtLeast(f64),
    OursAtMost(f64),
}

/// The whole table, row by row.
const ALL: [Trial; 17] = [
    Trial { case: Case::Idle, members: 1 },
    Trial { case: Case::Put1, members: 1 },
    Trial { case: Case::Put100, members: 1 },
    Trial { case: Case::Put1000, members: 1 },
    Trial { case: Case::Range100, members: 1 },
    Trial { case: Case::Range1, members: 1 },
    Trial { case: Case::Put100, members: 3 },
    Trial { case: Case::Keys100k, members: 1 },
    Trial { case: Case::Keys1m, members: 1 },
    Trial { case: Case::Compaction, members: 1 },
    Trial { case: Case::KeepAlive100, members: 1 },
    Trial { case: Case::Watch100, members: 1 },
    Trial { case: Case::Watchers50k, members: 1 },
    Trial { case: Case::CatchUp, members: 1 },
    Trial { case: Case::LeaseExpiry, members: 1 },
    Trial { case: Case::SnapshotSave, members: 1 },
    Trial { case: Case::LeaderKill, members: 3 },
];

impl Trial {
    /// What is run: of the whole table what was chosen, or any chosen case on so many members.
    pub fn chosen(members: Option<usize>, cases: &[Case]) -> Vec<Trial> {
        let of_table = ALL.into_iter().filter(|trial| members.is_none_or(|members| trial.members == members));
        match members {
            Some(members) if !cases.is_empty() => cases.iter().map(|case| Trial { case: *case, members }).collect(),
            _ => of_table.filter(|trial| cases.is_empty() || cases.contains(&trial.case)).collect(),
        }
    }

    /// The wishes for this figure, if there are any.
    pub fn goals(self, measure: Measure) -> &'static [Goal] {
        match (self.members, self.case, measure) {
            (1, Case::Put1, Measure::P50) => &[Goal::RatioAtMost(0.7)],
            (1, Case::Put100 | Case::Put1000, Measure::RequestsPerSecond) => &[Goal::RatioAtLeast(1.9)],
            (1, Case::Put100 | Case::Put1000, Measure::CpuMicros) => &[Goal::RatioAtMost(0.4)],
            (1, Case::Put100 | Case::Put1000, Measure::P99) => &[Goal::RatioAtMost(0.5)],
            (1, Case::Range100, Measure::RequestsPerSecond) => &[Goal::RatioAtLeast(1.5)],
            (1, Case::Range100, Measure::CpuMicros) => &[Goal::RatioAtMost(0.45)],
            (1, Case::Range1, Measure::CpuMicros) => &[Goal::RatioAtMost(0.5)],
            (3, Case::Put100, Measure::RequestsPerSecond) => &[Goal::RatioAtLeast(1.7)],
            (3, Case::Put100, Measure::CpuMicros) => &[Goal::RatioAtMost(0.45)],
            (1, Case::Keys100k, Measure::Memory) => &[Goal::RatioAtMost(0.5)],
            (1, Case::Keys1m, Measure::Memory) => &[Goal::RatioAtMost(0.35)],
            (1, Case::Keys1m, Measure::List) => &[Goal::RatioAtMost(0.2)],
            (1, Case::Keys1m, Measure::Restart) => &[Goal::OursAtMost(1.5), Goal::RatioAtMost(0.5)],
            (1, Case::Compaction, Measure::Slowdown) => &[Goal::OursAtMost(1.5)],
            (1, Case::KeepAlive100, Measure::RequestsPerSecond) => &[Goal::RatioAtLeast(1.5)],
            (1, Case::Watch100, Measure::EventsPerSecond) => &[Goal::RatioAtLeast(2.0)],
            (1, Case::Watch100, Measure::DeliveryP99) => &[Goal::RatioAtMost(0.5)],
            (1, Case::Watchers50k, Measure::Lost) => &[Goal::OursAtMost(5.0)],
            (1, Case::Watchers50k, Measure::WatcherBytes) => &[Goal::RatioAtMost(0.5)],
            (1, Case::CatchUp, Measure::CatchUp) => &[Goal::RatioAtLeast(2.0)],
            (1, Case::LeaseExpiry, Measure::P99Meanwhile | Measure::AllGone) => &[Goal::RatioAtMost(0.5)],
            (1, Case::SnapshotSave, Measure::Snapshot) => &[Goal::RatioAtMost(1.0)],
            (1, Case::SnapshotSave, Measure::P99Meanwhile) => &[Goal::RatioAtMost(0.5)],
            (3, Case::LeaderKill, Measure::Failover) => &[Goal::RatioAtMost(1.0)],
            (1, Case::Idle, Measure::Memory) => &[Goal::OursAtMost(20.0)],
            (1, Case::Idle, Measure::CpuShare) => &[Goal::OursAtMost(1.0)],
            _ => &[],
        }
    }

    /// About how long one round of it takes, both programs together, on two idle cores against etcd 3.5.1: an estimate from
    /// single runs of some cases. A busy machine was seen to take twice as long.
    pub fn seconds(self) -> u64 {
        match (self.case, self.members) {
            (Case::Idle, _) => 28,
            (Case::Put1, _) => 12,
            (Case::Put100, 1) => 12,
            (Case::Put100, _) => 30,
            (Case::Put1000, _) => 16,
            (Case::Range100, _) => 12,
            (Case::Range1, _) => 14,
            (Case::Compaction, _) => 50,
            (Case::Keys100k, _) => 24,
            (Case::Keys1m, _) => 220,
            (Case::KeepAlive100, _) => 12,
            (Case::Watch100, _) => 24,
            (Case::Watchers50k, _) => 50,
            (Case::CatchUp, _) => 110,
            (Case::LeaseExpiry, _) => 40,
            (Case::SnapshotSave, _) => 70,
            (Case::LeaderKill, _) => 45,
        }
    }
}

impl Case {
    /// What it is called where `keys` keys are written.
    pub fn title(self, keys: u64) -> String {
        match self {
            Case::Idle => "idle".to_owned(),
            Case::Put1 => "put, 1 client".to_owned(),
            Case::Put100 => "put, 10 connections/100 clients".to_owned(),
            Case::Put1000 => "put, 100/1000".to_owned(),
            Case::Range100 => "range, 10/100".to_owned(),
            Case::Range1 => "range, 1 client".to_owned(),
            Case::Compaction => "put, 10/100, and a compaction".to_owned(),
            Case::Keys100k | Case::Keys1m => format!("{keys} keys"),
            Case::KeepAlive100 => "lease keep-alive, 10/100".to_owned(),
            Case::Watch100 => "watch, 100 streams of 100 watchers".to_owned(),
            Case::Watchers50k => "put, 10/100, and 50,000 watchers of other keys".to_owned(),
            Case::CatchUp => format!("a watcher from the first of {keys} revisions"),
            Case::LeaseExpiry => "put, 10/100, and 10,000 leases expire".to_owned(),
            Case::SnapshotSave => "put, 10/100, and a snapshot of 1 GB".to_owned(),
            Case::LeaderKill => "the leader is killed".to_owned(),
        }
    }

    /// Connections, clients and requests.
    pub fn size(self) -> (u32, u32, u64) {
        match self {
            Case::Idle | Case::Put1 => (1, 1, 5_000),
            Case::Range1 => (1, 1, 20_000),
            Case::Put100 | Case::Compaction => (10, 100, 50_000),
            Case::Put1000 => (100, 1000, 100_000),
            Case::Range100 | Case::Keys100k | Case::KeepAlive100 => (10, 100, 100_000),
            Case::Watch100 => (10, 1, 300),
            Case::Keys1m | Case::CatchUp => (10, 100, 1_000_000),
            Case::Watchers50k | Case::LeaseExpiry | Case::SnapshotSave => (10, 100, 50_000),
            Case::LeaderKill => (3, 3, 3_000),
        }
    }

    /// Whether its floors tell anything: what its figures are about is the cost of a request.
    pub fn has_floors(self) -> bool {
        matches!(self, Case::Put1 | Case::Put100 | Case::Put1000 | Case::Range100 | Case::Range1)
    }
}

impl Measure {
    pub fn title(self) -> &'static str {
        match self {
            Measure::RequestsPerSecond => "requests/s",
            Measure::CpuMicros => "server CPU, µs/request",
            Measure::P50 => "p50, ms",
            Measure::P99 => "p99, ms",
            Measure::Memory => "memory, MB",
            Measure::CpuShare => "CPU, % of a core",
            Measure::List => "list in pages of 500 (60 s at most), s",
            Measure::Restart => "kill -9 to first read, s",
            Measure::P99Before => "p99 without it, ms",
            Measure::P99Meanwhile => "p99 beside it, ms",
            Measure::CatchUp => "events/s (30 s at most)",
            Measure::Before => "requests/s without them",
            Measure::Meanwhile => "requests/s beside them",
            Measure::Lost => "requests/s lost to them, %",
            Measure::WatcherBytes => "memory, bytes/watcher",
            Measure::AllGone => "first one due to last one gone, s",
            Measure::Saved => "bytes of the snapshot, MB",
            Measure::Snapshot => "the snapshot alone, s",
            Measure::Failover => "kill -9 to next write, s",
            Measure::Slowdown => "p99 beside it / without it",
            Measure::Compaction => "the compaction, s",
            Measure::EventsPerSecond => "events/s",
            Measure::CpuMicrosEvent => "server CPU, µs/event",
            Measure::DeliveryP50 => "paced: p50 delivery, ms",
            Measure::DeliveryP99 => "paced: p99 delivery, ms",
        }
    }
}

impl Goal {
    pub fn is_met(self, ours: f64, ratio: f64) -> bool {
        match self {
            Goal::RatioAtMost(most) => ratio <= most,
            Goal::RatioAtLeast(least) => ratio >= least,
            Goal::OursAtMost(most) => ours <= most,
        }
    }

    pub fn text(self) -> String {
        match self {
            Goal::RatioAtMost(most) => format!("ratio ≤ {most}"),
            Goal::RatioAtLeast(least) => format!("ratio ≥ {least}"),
            Goal::OursAtMost(most) => format!("ours ≤ {most}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trials_are_the_whole_table_or_what_was_chosen() {
        let check = |members: Option<usize>, cases: &[Case], expected: &[(Case, usize)]| {
            let trials = Trial::chosen(members, cases);
            let found: Vec<(Case, usize)> = trials.iter().map(|trial| (trial.case, trial.members)).collect();
            assert_eq!(found, expected, "{members:?} {cases:?}");
        };
        assert_eq!(Trial::chosen(None, &[]), ALL);
        check(Some(3), &[], &[(Case::Put100, 3), (Case::LeaderKill, 3)]);
        check(None, &[Case::LeaderKill], &[(Case::LeaderKill, 3)]);
        check(None, &[Case::Put100], &[(Case::Put100, 1), (Case::Put100, 3)]);
        check(Some(1), &[Case::Put100], &[(Case::Put100, 1)]);
        check(Some(3), &[Case::Range1, Case::Idle], &[(Case::Range1, 3), (Case::Idle, 3)]);
    }

    #[test]
    fn five_rounds_of_everything_are_planned_for_an_hour_or_little_more() {
        let seconds: u64 = ALL.iter().map(|trial| trial.seconds()).sum();
        assert!(5 * seconds <= 65 * 60, "{seconds} s a round");
    }

    #[test]
    fn goals_are_met_at_their_limits() {
        assert!(Goal::RatioAtMost(0.5).is_met(9.0, 0.5) && !Goal::RatioAtMost(0.5).is_met(0.1, 0.51));
        assert!(Goal::RatioAtLeast(1.9).is_met(9.0, 1.9) && !Goal::RatioAtLeast(1.9).is_met(9.0, 1.89));
        assert!(Goal::OursAtMost(1.5).is_met(1.5, 9.0) && !Goal::OursAtMost(1.5).is_met(1.6, 0.1));
    }
}
