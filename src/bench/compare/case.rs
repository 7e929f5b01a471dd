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
    /// Many keys: memory, a list in pages, kill -9 and the way back
    Keys,
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
}

/// What issue 4's table asks for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    RatioAtMost(f64),
    RatioAtLeast(f64),
    OursAtMost(f64),
}

impl Case {
    /// What is run when nobody chose.
    pub fn all(members: usize) -> &'static [Case] {
        match members {
            1 => &[Case::Idle, Case::Put1, Case::Put100, Case::Put1000, Case::Range100, Case::Range1, Case::Keys],
            _ => &[Case::Put100],
        }
    }

    pub fn title(self, keys: u64) -> String {
        match self {
            Case::Idle => "idle".to_owned(),
            Case::Put1 => "put, 1 client".to_owned(),
            Case::Put100 => "put, 10 conns/100 clients".to_owned(),
            Case::Put1000 => "put, 100/1000".to_owned(),
            Case::Range100 => "range, 10/100".to_owned(),
            Case::Range1 => "range, 1 client".to_owned(),
            Case::Keys => format!("{keys} keys"),
        }
    }

    /// Connections, clients and requests.
    pub fn size(self) -> (u32, u32, u64) {
        match self {
            Case::Idle | Case::Put1 => (1, 1, 5_000),
            Case::Range1 => (1, 1, 20_000),
            Case::Put100 | Case::Keys => (10, 100, 50_000),
            Case::Put1000 => (100, 1000, 100_000),
            Case::Range100 => (10, 100, 100_000),
        }
    }

    /// The wish for this figure, where there is one.
    pub fn goal(self, measure: Measure, members: usize, keys: u64) -> Option<Goal> {
        Some(match (members, self, measure) {
            (1, Case::Put1, Measure::P50) => Goal::RatioAtMost(0.7),
            (1, Case::Put100 | Case::Put1000, Measure::RequestsPerSecond) => Goal::RatioAtLeast(1.9),
            (1, Case::Put100 | Case::Put1000, Measure::CpuMicros) => Goal::RatioAtMost(0.4),
            (1, Case::Put100 | Case::Put1000, Measure::P99) => Goal::RatioAtMost(0.5),
            (1, Case::Range100, Measure::RequestsPerSecond) => Goal::RatioAtLeast(1.5),
            (1, Case::Range100, Measure::CpuMicros) => Goal::RatioAtMost(0.45),
            (1, Case::Range1, Measure::CpuMicros) => Goal::RatioAtMost(0.5),
            (3, Case::Put100, Measure::RequestsPerSecond) => Goal::RatioAtLeast(1.7),
            (3, Case::Put100, Measure::CpuMicros) => Goal::RatioAtMost(0.45),
            (1, Case::Keys, Measure::Memory) => Goal::RatioAtMost(if keys >= 1_000_000 { 0.35 } else { 0.5 }),
            (1, Case::Keys, Measure::List) => Goal::RatioAtMost(0.2),
            (1, Case::Keys, Measure::Restart) => Goal::RatioAtMost(0.5),
            (1, Case::Idle, Measure::Memory) => Goal::OursAtMost(20.0),
            (1, Case::Idle, Measure::CpuShare) => Goal::OursAtMost(1.0),
            _ => return None,
        })
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
            Measure::List => "list in pages of 500, s",
            Measure::Restart => "kill -9 to first read, s",
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
