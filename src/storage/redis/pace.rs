//! How often the replicas of a large fleet read a busy log.
//!
//! A read costs Redis about 19 µs, however few entries it returns. In a small fleet, a tail therefore reads again as soon
//! as it has an answer, and observers get each change at once. In a large fleet that would take most of a master's time:
//! with 30 replicas, 570 µs for each change. There, a tail pauses between the reads of a busy log.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// The number of replicas that read without a pause.
const WITHOUT_PAUSE: u32 = 3;

/// How much each further replica adds to the pause.
///
/// If `n` replicas read a log every `n` × 200 µs, they take `n` × 19 µs of that time, about a tenth of a core. A master with
/// two partitions spends a fifth of its time on them. Because the first replicas add nothing, it is at most 21% with 30
/// replicas, 30% with eight, and 48% with five.
const A_REPLICA: Duration = Duration::from_micros(200);

/// The longest pause, which is reached with 103 replicas. With 200 replicas, reads take up to 38% of a master.
const LONGEST: Duration = Duration::from_millis(20);

/// The pace at which a partition's log is read.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// How many replicas share the registry. 0 if this is not known yet.
    replicas: AtomicU32,
}

impl Pace {
    /// Records how many replicas share the registry.
    pub(super) fn note_replicas(&self, replicas: u32) {
        self.replicas.store(replicas, Ordering::Relaxed);
    }

    pub(super) fn replicas(&self) -> u32 {
        self.replicas.load(Ordering::Relaxed)
    }

    /// Returns the minimum time between the starts of two reads, if the first one returns entries.
    pub(super) fn pause(&self) -> Duration {
        pause(self.replicas())
    }
}

/// Returns the pause in a fleet of so many replicas.
pub(super) fn pause(replicas: u32) -> Duration {
    A_REPLICA.saturating_mul(replicas.saturating_sub(WITHOUT_PAUSE)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The processor time that a read takes in Redis, in µs: see the model in docs/fleet.md.
    const A_READ: f64 = 19.0;

    /// The share of a master's time that followers can take. It has two partitions.
    fn taken(replicas: u32) -> f64 {
        2.0 * A_READ * f64::from(replicas) / pause(replicas).as_micros() as f64
    }

    #[test]
    fn a_small_fleet_has_no_pause() {
        assert_eq!([0, 1, 2, 3].map(pause), [Duration::ZERO; 4]);
        assert_eq!(Pace::default().pause(), Duration::ZERO);
    }

    #[test]
    fn the_pause_grows_with_the_fleet_up_to_a_limit() {
        let micros = [4, 8, 30, 100, 103, 104, u32::MAX].map(|replicas| pause(replicas).as_micros());
        assert_eq!(micros, [200, 1_000, 5_400, 19_400, 20_000, 20_000, 20_000]);
        let pace = Pace::default();
        pace.note_replicas(30);
        assert_eq!((pace.replicas(), pace.pause()), (30, Duration::from_micros(5_400)));
    }

    #[test]
    fn the_followers_of_a_large_fleet_take_about_a_fifth_of_a_master() {
        for replicas in 20..=103 {
            assert!((0.19..0.23).contains(&taken(replicas)), "{replicas}: {}", taken(replicas));
        }
        assert!(taken(8) < 0.31 && taken(5) < 0.48 && taken(200) < 0.39);
    }
}
