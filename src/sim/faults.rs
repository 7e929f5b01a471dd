//! What goes wrong, and how often: drawn once from the seed, so that each run is cruel in its own way.

use crate::disk::sim::Dice;
use crate::sim::world::Micros;

const SECOND: Micros = 1_000_000;

/// One kind of misfortune.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A process dies; its machine goes on.
    Kill,
    /// A machine loses power at one of its next disk operations.
    PowerCut,
    /// All machines lose power at once.
    Blackout,
    /// One of a member's next disk operations fails.
    DiskError,
    /// A process stands still, and its clock with it.
    Pause,
    /// One member hears another no more.
    OneWayCut,
    /// Two groups that do not hear each other.
    Partition,
    /// The leader alone on one side.
    IsolateLeader,
    /// Messages are lost and doubled.
    Loss,
    /// Messages take long and overtake each other.
    Delay,
    /// A member's apply thread makes no progress, or little.
    HoldApply,
    /// A member's disk takes long.
    SlowDisk,
    /// Somebody asks for another leader.
    Transfer,
    /// The checkpoint's next write fails.
    CheckpointError,
    /// Nothing reaches a member for a while, and nothing is lost: it all comes afterwards, bit by bit.
    Clog,
    /// The leader stands still until another one leads, wakes up among acknowledgements of long ago, and is asked at once.
    StaleLeader,
    /// A clock runs at another pace from now on.
    ClockSkew,
    /// The membership changes.
    Reconfigure,
}

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Fault::Kill => "kills",
            Fault::PowerCut => "power cuts",
            Fault::Blackout => "power cuts of all members",
            Fault::DiskError => "disk errors",
            Fault::Pause => "pauses",
            Fault::OneWayCut => "one-way cuts",
            Fault::Partition => "partitions",
            Fault::IsolateLeader => "leaders isolated",
            Fault::Loss => "times of loss",
            Fault::Delay => "times of delay",
            Fault::HoldApply => "applies held up",
            Fault::SlowDisk => "slow disks",
            Fault::Transfer => "leader transfers",
            Fault::CheckpointError => "checkpoint errors",
            Fault::Clog => "clogged links",
            Fault::StaleLeader => "leaders put to sleep",
            Fault::ClockSkew => "clock skews",
            Fault::Reconfigure => "membership changes asked for",
        }
    }
}

const ALL: [Fault; 18] = [
    Fault::Kill,
    Fault::PowerCut,
    Fault::Blackout,
    Fault::DiskError,
    Fault::Pause,
    Fault::OneWayCut,
    Fault::Partition,
    Fault::IsolateLeader,
    Fault::Loss,
    Fault::Delay,
    Fault::HoldApply,
    Fault::SlowDisk,
    Fault::Transfer,
    Fault::CheckpointError,
    Fault::Clog,
    Fault::StaleLeader,
    Fault::ClockSkew,
    Fault::Reconfigure,
];

/// The character of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub members: u64,
    pub clients: usize,
    pub keys: u64,
    /// A client waits up to this long between two calls.
    pub think_max: Micros,
    pub faults: Vec<Fault>,
    /// Mean time between faults.
    pub fault_every: Micros,
    pub fault_time: Micros,
    pub flush_after: Micros,
    pub catch_up_entries: u64,
    pub snapshot_entries: u64,
    pub compaction_percent: u64,
    pub reads_percent: u64,
}

impl Plan {
    pub fn draw(dice: &mut Dice) -> Plan {
        let half: Vec<Fault> = ALL.into_iter().filter(|_| dice.chance(50)).collect();
        Plan {
            members: dice.pick(&[1, 3, 3, 3, 3, 4, 5, 5]),
            clients: count(dice.pick(&[2, 3, 4, 5, 5, 10])),
            keys: 2 + dice.below(9),
            think_max: dice.pick(&[20_000, 60_000, 200_000]),
            faults: if half.is_empty() { ALL.to_vec() } else { half },
            fault_every: dice.pick(&[SECOND / 4, SECOND / 2, SECOND, 2 * SECOND]),
            fault_time: (6 + dice.below(10)) * SECOND,
            flush_after: dice.pick(&[SECOND / 20, SECOND / 4, SECOND]),
            catch_up_entries: dice.pick(&[1, 10, 50, 500]),
            snapshot_entries: dice.pick(&[5, 20, 100]),
            compaction_percent: dice.pick(&[0, 2, 5]),
            reads_percent: dice.pick(&[20, 30, 70]),
        }
    }
}

fn count(number: u64) -> usize {
    usize::try_from(number).expect("a small number")
}
