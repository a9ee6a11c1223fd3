//! A model of what a fleet costs, and what it says about larger fleets.

use super::{
    fit::{Fit, dot},
    fleet::{Sample, WORKERS},
    load::Calls,
};

/// The parts of what a replica costs.
pub(crate) const REPLICA: [&str; 8] = [
    "a partition, each second: checks of the connection, of the log and of the keys",
    "a wake-up of a thread",
    "a CreateSession or DestroySession",
    "a HasSession",
    "a read of the log, with one entry or more",
    "a followed event",
    "a message to an observer",
    "an event in a message to an observer",
];

/// The parts of what all masters cost together.
pub(crate) const REDIS: [&str; 8] = [
    "a replica of sessiond, each second: its checks",
    "a partition of a replica, each second: its checks",
    "a wake-up of a master",
    "an entry of the log: one script",
    "a change in an entry",
    "a read of the log, with one entry or more",
    "an event in a read",
    "a HasSession",
];

/// The places of the parts above that following consists of, and of a call.
const CALL: usize = 2;
const READ: usize = 4;
const EVENT: usize = 5;
const A_READ: usize = 5;
const READ_EVENT: usize = 6;

pub(crate) struct Model {
    pub(crate) replica: [f64; REPLICA.len()],
    pub(crate) redis: [f64; REDIS.len()],
    /// The median relative errors.
    pub(crate) replica_error: f64,
    pub(crate) redis_error: f64,
    /// The share of a call's cost that is on the replica's main thread, whichever worker has its connection.
    pub(crate) main_share: f64,
}

impl Model {
    pub(crate) fn fit(samples: &[Sample]) -> Self {
        let (mut replica, mut redis) = (Fit::new(), Fit::new());
        let (mut of_first, mut of_its_main) = (0.0, 0.0);
        for sample in samples {
            let (replicas, partitions) = (sample.shape.replicas as f64, sample.shape.partitions as f64);
            let reads = sample.reads / replicas;
            let observers = f64::from(sample.load.observers);
            let is_unary = matches!(sample.load.calls, Calls::Changes | Calls::Most);
            let lookups = if sample.load.calls == Calls::Has { sample.lookups } else { 0.0 };
            for (n, ran) in sample.replicas.iter().enumerate() {
                let share = sample.load.share_of(n, sample.shape.replicas);
                if sample.load.calls == Calls::Batches && share > 0.0 {
                    // A batch costs less than its sessions one by one.
                    continue;
                }
                let calls = if is_unary { sample.changes * share } else { 0.0 };
                let counts = [
                    partitions,
                    ran.wakeups,
                    calls,
                    lookups * share,
                    reads,
                    sample.changes,
                    observers * reads,
                    observers * sample.changes,
                ];
                replica.add(counts, ran.seconds);
            }
            let counts = [
                replicas,
                replicas * partitions,
                sample.redis.wakeups,
                sample.entries,
                sample.changes,
                sample.reads,
                replicas * sample.changes,
                lookups,
            ];
            redis.add(counts, sample.redis.seconds);
            if sample.load.calls == Calls::Changes && sample.load.only_first {
                of_first += sample.replicas[0].seconds;
                of_its_main += sample.mains[0].seconds;
            }
        }
        let (of_replica, of_redis) = (replica.solve(), redis.solve());
        // The workers share the connections evenly, and only the first, the main thread, does the rest.
        let of_each_other = (of_first - of_its_main) / (WORKERS - 1) as f64;
        Self {
            replica: of_replica,
            redis: of_redis,
            replica_error: replica.error(&of_replica),
            redis_error: redis.error(&of_redis),
            main_share: (of_its_main - of_each_other) / of_first,
        }
    }

    /// Returns the cores that a replica, its main thread, and a master need for so many unary changes per second, if
    /// they are so busy that they never sleep. Each change is an entry of its own, because it is unlikely that one
    /// replica has two for one partition at the same time.
    fn needs(&self, fleet: &Planned, changes: f64) -> [f64; 3] {
        let (replicas, partitions) = (fleet.replicas as f64, fleet.partitions as f64);
        let reads = partitions * reads(changes / partitions, fleet.pause);
        let observers = fleet.observers as f64 / replicas;
        let messages = observers * reads;
        let counts = [partitions, 0.0, changes / replicas, 0.0, reads, changes, messages, observers * changes];
        let all = dot(&self.replica, &counts);
        let one_thread = self.one_thread(&counts);
        let counts =
            [replicas, replicas * partitions, 0.0, changes, changes, replicas * reads, replicas * changes, 0.0];
        let master = dot(&self.redis, &counts) / fleet.masters as f64;
        [all, one_thread + (all - one_thread) / CORES, master]
    }

    /// Returns what a replica's main thread alone does. It follows, and sends all calls to Redis.
    fn one_thread(&self, counts: &[f64; REPLICA.len()]) -> f64 {
        let parts = [(0, 1.0), (CALL, self.main_share), (READ, 1.0), (EVENT, 1.0)];
        parts.into_iter().map(|(part, share)| share * self.replica[part] * counts[part]).sum()
    }

    /// Returns the most unary changes per second that a replica's cores, its main thread, and a master can take.
    pub(crate) fn limits(&self, fleet: &Planned) -> [f64; 3] {
        let cores = [CORES, 1.0, 1.0];
        std::array::from_fn(|what| {
            let (mut low, mut high) = (0.0, 1e8);
            for _ in 0..60 {
                let middle = (low + high) / 2.0;
                let is_enough = self.needs(fleet, middle)[what] <= BUSY * cores[what];
                if is_enough { low = middle } else { high = middle }
            }
            low
        })
    }

    /// Returns the share of the main thread's time that following takes at this load, and the share of a master's time
    /// that serving the followers takes.
    pub(crate) fn following(&self, fleet: &Planned, changes: f64) -> (f64, f64) {
        let (partitions, replicas) = (fleet.partitions as f64, fleet.replicas as f64);
        let reads = partitions * reads(changes / partitions, fleet.pause);
        let [_, main, master] = self.needs(fleet, changes);
        let follow = self.replica[READ] * reads + self.replica[EVENT] * changes;
        let serve = replicas * (self.redis[A_READ] * reads + self.redis[READ_EVENT] * changes) / fleet.masters as f64;
        (follow / main, serve / master)
    }
}

/// A fleet on paper.
#[derive(Clone, Copy)]
pub(crate) struct Planned {
    pub(crate) replicas: usize,
    pub(crate) masters: usize,
    pub(crate) partitions: usize,
    /// Observers of all changes, spread over the replicas.
    pub(crate) observers: usize,
    /// How long it takes from one read of a log to the next, in seconds, if there is an entry. With 0, each entry is
    /// read for itself.
    pub(crate) pause: f64,
}

/// The cores of each planned machine, each of which runs one replica, and how busy they may be. A master has one core,
/// because Redis runs commands one after the other.
pub(crate) const CORES: f64 = 4.0;
pub(crate) const BUSY: f64 = 0.7;

/// Returns how often per second a follower reads a log that gets so many entries, which come independently of each
/// other.
fn reads(entries: f64, pause: f64) -> f64 {
    if entries == 0.0 { 0.0 } else { 1.0 / (pause + (-entries * pause).exp() / entries) }
}
