//! The plan of a run.

use std::{
    hash::{BuildHasher as _, RandomState},
    ops::Range,
    time::Duration,
};

use super::{
    super::exit::{CliError, Exit},
    mix::Mix,
    pace::Arrivals,
    ring::existing_at_first,
    target::Target,
};

pub(super) const MAX_SESSIONS: u32 = 100_000_000;

/// The number of sessions if nothing requires more.
const DEFAULT_SESSIONS: u32 = 100_000;

/// The limit of memory for the views of all observers: one byte per session and observer.
const MAX_OBSERVED: u64 = 4 << 30;

/// The parameters of a run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) target: Target,
    /// Random, so that the run touches no other sessions.
    pub(super) auth_key_id: i64,
    pub(super) mix: Mix,
    pub(super) connections: u32,
    /// Per connection.
    pub(super) in_flight: u32,
    pub(super) batch: u32,
    pub(super) sessions: u32,
    pub(super) observers: u32,
    pub(super) observers_per_connection: u32,
    pub(super) duration: Duration,
    pub(super) warmup: Duration,
    /// Calls per second of an open loop.
    pub(super) rate: Option<u32>,
    pub(super) threads: u32,
}

/// The share of one thread.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Share {
    /// The callers of each of its connections for calls.
    pub(super) connections: Vec<Range<u32>>,
    /// The number of observers on each of its connections for observers.
    pub(super) observers: Vec<u32>,
}

/// Returns a random auth key id, which nobody else uses.
pub(super) fn random_auth_key_id() -> i64 {
    // The keys of this hasher come from the system's random generator. 0 means no auth key.
    match RandomState::new().hash_one(()).cast_signed() {
        0 => 1,
        key => key,
    }
}

impl Plan {
    /// Returns the default number of sessions.
    pub(super) fn default_sessions(connections: u32, in_flight: u32, batch: u32) -> u32 {
        // `check` refuses a plan that needs more.
        let most = u64::from(MAX_SESSIONS);
        Self::least_sessions(connections, in_flight, batch).clamp(DEFAULT_SESSIONS.into(), most) as u32
    }

    /// Returns the minimum number of sessions. Each caller needs two batches: one that exists and one that does not.
    fn least_sessions(connections: u32, in_flight: u32, batch: u32) -> u64 {
        2 * u64::from(connections) * u64::from(in_flight) * u64::from(batch)
    }

    pub(super) fn check(&self) -> Result<(), CliError> {
        let usage = |message: String| Err(CliError::new(Exit::Usage, message));
        let least = Self::least_sessions(self.connections, self.in_flight, self.batch);
        if least > u64::from(self.sessions) {
            return usage(format!(
                "--sessions must be at least {least}, two batches for each call in flight (and may be {MAX_SESSIONS}): \
                 raise it, or lower --connections, --in-flight or --batch"
            ));
        }
        if u64::from(self.observers) * u64::from(self.sessions) > MAX_OBSERVED {
            return usage(format!(
                "{} observers of {} sessions take more than 4 GiB of memory: lower --observers or --sessions",
                self.observers, self.sessions
            ));
        }
        Ok(())
    }

    pub(super) fn callers(&self) -> u32 {
        self.connections * self.in_flight
    }

    /// Returns the sessions of a caller.
    pub(super) fn sessions_of(&self, caller: u32) -> Range<u32> {
        let bound = |caller: u32| {
            // Cannot be truncated: it is at most `sessions`.
            (u64::from(caller) * u64::from(self.sessions) / u64::from(self.callers())) as u32
        };
        bound(caller)..bound(caller + 1)
    }

    /// Returns the sessions that exist before the first call.
    pub(super) fn existing_at_first(&self) -> impl Iterator<Item = u32> {
        (0..self.callers()).flat_map(|caller| existing_at_first(&self.sessions_of(caller)))
    }

    /// Returns the share of each thread. Observers are assigned in reverse order, so that a few observers and a few
    /// callers do not share a thread.
    pub(super) fn shares(&self) -> Vec<Share> {
        let observer_connections = self.observers.div_ceil(self.observers_per_connection);
        let threads = self.threads.min(self.connections + observer_connections).max(1);
        let deal = |things: u32, thread: u32| (0..things).filter(move |thing| thing % threads == thread);
        (0..threads)
            .map(|thread| Share {
                connections: deal(self.connections, thread)
                    .map(|connection| connection * self.in_flight..(connection + 1) * self.in_flight)
                    .collect(),
                observers: deal(observer_connections, threads - 1 - thread)
                    .map(|connection| {
                        let before = connection * self.observers_per_connection;
                        self.observers_per_connection.min(self.observers - before)
                    })
                    .collect(),
            })
            .collect()
    }

    /// Returns the arrivals of an open loop on thread `index` of `threads`, which has this many `connections`.
    pub(super) fn arrivals(&self, index: usize, threads: usize, connections: usize) -> Option<Arrivals> {
        let rate = self.rate.filter(|_| connections > 0)?;
        Some(Arrivals {
            calls_per_second: f64::from(rate) * connections as f64 / f64::from(self.connections),
            phase: index as f64 / threads as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{super::super::credentials::Credentials, *};

    fn plan() -> Plan {
        Plan {
            target: Target::new("http://127.0.0.1:1", &Credentials::default()).expect("the address is valid"),
            auth_key_id: random_auth_key_id(),
            mix: "has=1".parse().unwrap(),
            connections: 3,
            in_flight: 7,
            batch: 2,
            sessions: 1000,
            observers: 10,
            observers_per_connection: 3,
            duration: Duration::from_secs(1),
            warmup: Duration::ZERO,
            rate: Some(1000),
            threads: 2,
        }
    }

    #[test]
    fn auth_keys_of_runs_are_unique() {
        let keys: BTreeSet<i64> = (0..1000).map(|_| random_auth_key_id()).collect();
        assert!(keys.len() == 1000 && !keys.contains(&0), "{keys:?}");
    }

    #[test]
    fn every_session_has_one_caller_with_room_for_two_batches() {
        let plan = plan();
        plan.check().unwrap();
        let all: Vec<u32> = (0..plan.callers()).flat_map(|caller| plan.sessions_of(caller)).collect();
        assert!(all.into_iter().eq(0..plan.sessions));
        assert!((0..plan.callers()).all(|caller| plan.sessions_of(caller).len() >= 4));
    }

    #[test]
    fn threads_share_all_callers_and_observers() {
        for threads in [1, 2, 5, 100] {
            let plan = Plan { threads, ..plan() };
            let shares = plan.shares();
            let mut callers: Vec<u32> =
                shares.iter().flat_map(|share| share.connections.iter().cloned().flatten()).collect();
            callers.sort_unstable();
            assert!(callers.into_iter().eq(0..plan.callers()), "{shares:?}");
            assert_eq!(shares.iter().flat_map(|share| &share.observers).sum::<u32>(), plan.observers, "{shares:?}");
            let rates = shares.iter().filter_map(|share| plan.arrivals(0, shares.len(), share.connections.len()));
            let rate: f64 = rates.map(|arrivals| arrivals.calls_per_second).sum();
            assert!((rate - 1000.0).abs() < 0.001, "{rate}");
        }
    }

    #[test]
    fn plans_that_do_not_fit_are_refused() {
        assert!(Plan { sessions: 83, ..plan() }.check().is_err());
        assert!(Plan { sessions: 84, ..plan() }.check().is_ok());
        assert!(Plan { sessions: MAX_SESSIONS, observers: 1000, ..plan() }.check().is_err());
    }
}
