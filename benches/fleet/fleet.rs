//! Replicas of sessiond that share a registry, and what they and Redis use under a load.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    cluster::{Cluster, Work},
    load::{Calls, Load, Loaders},
    process::server::{Ran, Server, sessiond},
};

/// How long a load runs before it is measured.
const WARMUP: Duration = Duration::from_millis(300);
/// How long the loaders may take to start and to create their first sessions.
const START: Duration = Duration::from_millis(1200);
/// How long it is measured each time.
const WINDOW: Duration = Duration::from_millis(600);
/// Longer, because replicas probe Redis every three seconds.
const IDLE_WINDOW: Duration = Duration::from_millis(3100);

/// The threads of a replica that serve connections. The first also follows the log, and sends everything to Redis.
pub(crate) const WORKERS: usize = 2;

/// The number of replicas and partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) replicas: usize,
    pub(crate) partitions: usize,
}

/// What happened each second under a load.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) shape: Shape,
    pub(crate) load: Load,
    pub(crate) replicas: Vec<Ran>,
    /// The main thread of each replica, the first worker.
    pub(crate) mains: Vec<Ran>,
    /// All masters together.
    pub(crate) redis: Ran,
    pub(crate) changes: f64,
    pub(crate) entries: f64,
    /// Reads of logs by all replicas.
    pub(crate) reads: f64,
    /// HasSession.
    pub(crate) lookups: f64,
    /// What the masters sent.
    pub(crate) bytes: f64,
}

impl Sample {
    /// The processor time of all replicas.
    pub(crate) fn sessiond(&self) -> f64 {
        self.replicas.iter().map(|replica| replica.seconds).sum()
    }

    fn cost(&self) -> f64 {
        let done = if self.load.calls == Calls::Has { self.lookups } else { self.changes };
        (self.redis.seconds + self.sessiond()) / done.max(1.0)
    }
}

pub(crate) struct Fleet<'a> {
    cluster: &'a mut Cluster,
    registry: String,
    shape: Shape,
    /// How often a load is measured. The time in which a change costs least counts, because other programs of the
    /// machine come and go.
    windows: u32,
    pub(crate) replicas: Vec<Server>,
}

/// What was used since the start.
struct Used {
    at: Instant,
    replicas: Vec<Ran>,
    mains: Vec<Ran>,
    masters: Vec<Ran>,
    changes: f64,
    work: Vec<Work>,
}

impl<'a> Fleet<'a> {
    pub(crate) fn start(cluster: &'a mut Cluster, shape: Shape, windows: u32) -> Self {
        let registry = format!("fleet{}x{}", shape.replicas, shape.partitions);
        // No call fails, however busy the machine is.
        let url = cluster.url(&format!("registry={registry}&partitions={}&timeout_ms=20000", shape.partitions));
        let workers = WORKERS.to_string();
        let flags = ["--storage", &url, "--retain-events", "200000", "--workers", &workers];
        let replicas = (0..shape.replicas).map(|_| sessiond(&flags)).collect();
        Self { cluster, registry, shape, windows, replicas }
    }

    /// Returns what the fleet uses under a load.
    pub(crate) fn measure(&mut self, load: Load) -> Sample {
        if load.calls == Calls::None {
            thread::sleep(WARMUP);
            return self.sample(load, IDLE_WINDOW);
        }
        let addresses: Vec<_> = self.replicas.iter().map(|replica| replica.address).collect();
        let measured = WARMUP + WINDOW * self.windows;
        let (begun, before) = (Instant::now(), self.changes());
        let loaders = Loaders::start(load, &addresses, (measured + START).as_secs_f64());
        while self.changes() - before < loaders.first_sessions && begun.elapsed() < START {
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(WARMUP);
        let samples: Vec<Sample> = (0..self.windows).map(|_| self.sample(load, WINDOW)).collect();
        if begun.elapsed() > measured + START + WARMUP {
            eprintln!("the machine is too busy: some of this was measured after the load had ended");
        }
        loaders.finish();
        samples.into_iter().min_by(|a, b| a.cost().total_cmp(&b.cost())).unwrap()
    }

    fn sample(&mut self, load: Load, window: Duration) -> Sample {
        let before = self.used();
        thread::sleep(window);
        let after = self.used();
        let seconds = (after.at - before.at).as_secs_f64();
        let each = |after: &[Ran], before: &[Ran]| -> Vec<Ran> {
            let more = |(after, before): (&Ran, &Ran)| Ran {
                seconds: (after.seconds - before.seconds) / seconds,
                wakeups: (after.wakeups - before.wakeups) / seconds,
            };
            after.iter().zip(before).map(more).collect()
        };
        let masters = each(&after.masters, &before.masters);
        let work = |field: fn(&Work) -> f64| {
            (after.work.iter().map(field).sum::<f64>() - before.work.iter().map(field).sum::<f64>()) / seconds
        };
        Sample {
            shape: self.shape,
            load,
            replicas: each(&after.replicas, &before.replicas),
            mains: each(&after.mains, &before.mains),
            redis: Ran {
                seconds: masters.iter().map(|master| master.seconds).sum(),
                wakeups: masters.iter().map(|master| master.wakeups).sum(),
            },
            changes: (after.changes - before.changes) / seconds,
            entries: work(|work| work.entries),
            reads: work(|work| work.reads),
            lookups: work(|work| work.lookups),
            bytes: work(|work| work.bytes_sent),
        }
    }

    /// Returns how many changes the registry has had.
    pub(crate) fn changes(&mut self) -> f64 {
        self.cluster.changes(&self.registry, self.shape.partitions)
    }

    fn used(&mut self) -> Used {
        let at = Instant::now();
        Used {
            at,
            replicas: self.replicas.iter().map(Server::ran).collect(),
            mains: self.replicas.iter().map(Server::main_ran).collect(),
            masters: self.cluster.masters.iter().map(|master| master.server.ran()).collect(),
            changes: self.changes(),
            work: self.cluster.masters.iter_mut().map(|master| master.work()).collect(),
        }
    }
}
