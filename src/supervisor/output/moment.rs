//! When something happened, by both clocks: the wall's for people and other machines, the monotonic one for differences.

use nix::time::ClockId;
use nix::time::clock_gettime;

/// A point in time. The monotonic part counts from the machine's boot, so it compares between processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Nanoseconds since 1970, UTC.
    pub wall_ns: u64,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub mono_ns: u64,
}

impl Moment {
    pub fn now() -> Moment {
        Moment { wall_ns: read(ClockId::CLOCK_REALTIME), mono_ns: read(ClockId::CLOCK_MONOTONIC) }
    }
}

/// Neither clock can fail, nor be before its beginning, on a machine that runs us.
fn read(clock: ClockId) -> u64 {
    let Ok(time) = clock_gettime(clock) else { return 0 };
    let (seconds, nanos) = (u64::try_from(time.tv_sec()), u64::try_from(time.tv_nsec()));
    seconds.unwrap_or_default().saturating_mul(1_000_000_000).saturating_add(nanos.unwrap_or_default())
}
