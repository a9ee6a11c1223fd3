//! The logical clock of a partition, which limits how long a step is valid.
//!
//! Redis has only a wall clock, which people and NTP set. So each partition stores a logical time together with the
//! reading of the wall clock (`head.lua`). The current logical time is the stored time plus what the wall clock has
//! advanced since. If the wall clock went back, one second is added instead: the clock is stored once a second, so no
//! more time can have passed. (The scripts add 1.2 s, because a store may be slightly late.)

use super::guard::{Guard, Guards};

/// A time or a duration in seconds.
pub(crate) type Ticks = i8;

/// The longest time between two stores.
const STORE_INTERVAL: Ticks = 1;

/// Longer times make no difference to any model.
const LONG: Ticks = 8;

/// A partition's clock, as its meta hash stores it.
///
/// Only differences of times matter. So the stored time is always 0 here, and every holder of a time of this clock
/// shifts that time back when the clock is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct PartitionClock {
    /// How far the wall clock has advanced since the last store.
    advanced: Ticks,
}

impl PartitionClock {
    /// Returns the logical time.
    pub(crate) fn now(self, guards: Guards) -> Ticks {
        match self.advanced {
            0.. => self.advanced,
            _ if !guards.have(Guard::ClockNeverGoesBack) => self.advanced,
            _ if !guards.have(Guard::SetBackCounts) => 0,
            _ => STORE_INTERVAL,
        }
    }

    /// Stores the logical time. Returns how far the stored time advances.
    pub(crate) fn store(&mut self, guards: Guards) -> Ticks {
        let advanced = self.now(guards);
        self.advanced = 0;
        advanced
    }

    /// Moves the wall clock, because time passes or because it is set.
    pub(crate) fn move_wall(&mut self, by: Ticks) {
        self.advanced = (self.advanced + by).clamp(-LONG, LONG);
    }
}
