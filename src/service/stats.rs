//! What became of the calls, counted for metrics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use http::HeaderMap;
use tonic::{Code, Status};

use super::PATH;
use crate::histogram::{Histogram, Times};

/// The methods that are counted, by service. Others are not: whoever calls could make up as many as they like.
const METHODS: [&str; 10] = [
    "SessionService/HasSession",
    "SessionService/CreateSession",
    "SessionService/DestroySession",
    "SessionService/BatchHasSessions",
    "SessionService/BatchCreateSessions",
    "SessionService/BatchDestroySessions",
    "SessionService/Subscribe",
    "LeaseService/GrantLease",
    "LeaseService/KeepLeaseAlive",
    "LeaseService/RevokeLease",
];

/// The codes of gRPC count from 0 to 16.
const CODES: usize = 17;

const SHARDS: usize = 64;

/// Counts of all calls. Each thread has counts of its own, so that none waits for another's cache.
#[derive(Debug)]
pub(crate) struct CallStats(Box<[Arc<Shard>]>);

/// The counts of one thread, or of a few.
#[derive(Debug, Default)]
pub(crate) struct Shard {
    methods: [Counts; METHODS.len()],
}

#[derive(Debug, Default)]
struct Counts {
    started: AtomicU64,
    handled: [AtomicU64; CODES],
    times: Histogram,
}

/// What became of the calls of one method.
#[derive(Clone, Debug, Default)]
pub(crate) struct MethodStats {
    pub(crate) service: String,
    pub(crate) method: &'static str,
    pub(crate) is_unary: bool,
    pub(crate) started: u64,
    /// How many ended with each code.
    pub(crate) handled: [u64; CODES],
    pub(crate) times: Times,
}

/// A call under way. It counts as cancelled when it is dropped with nothing said of its end.
#[derive(Debug)]
pub(crate) struct Begun {
    shard: Arc<Shard>,
    method: usize,
    began: Instant,
    code: Code,
}

impl CallStats {
    pub(crate) fn new() -> Self {
        Self((0..SHARDS).map(|_| Arc::default()).collect())
    }

    /// The counts for calls that are answered on this thread.
    pub(crate) fn shard(&self) -> Arc<Shard> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static THREAD: usize = THREADS.fetch_add(1, Ordering::Relaxed);
        }
        Arc::clone(&self.0[THREAD.with(|thread| *thread) % SHARDS])
    }

    /// What became of the calls of each method so far.
    pub(crate) fn methods(&self) -> Vec<MethodStats> {
        let of = |(index, name): (usize, &'static &'static str)| {
            let (service, method) = name.split_once('/').unwrap_or_default();
            let counts = || self.0.iter().map(|shard| &shard.methods[index]);
            let sum = |of: &dyn Fn(&Counts) -> &AtomicU64| -> u64 {
                counts().map(|counts| of(counts).load(Ordering::Relaxed)).sum()
            };
            MethodStats {
                service: format!("sessiond.v1.{service}"),
                method,
                is_unary: is_unary(index),
                started: sum(&|counts| &counts.started),
                handled: std::array::from_fn(|code| sum(&|counts| &counts.handled[code])),
                times: Times::of(counts().map(|counts| &counts.times)),
            }
        };
        METHODS.iter().enumerate().map(of).collect()
    }
}

fn is_unary(method: usize) -> bool {
    METHODS[method] != "SessionService/Subscribe"
}

impl Shard {
    /// Counts a call that begins, if its path is of one of our methods.
    pub(crate) fn begin(self: &Arc<Self>, path: &str) -> Option<Begun> {
        let path = path.strip_prefix(PATH)?;
        let method = METHODS.iter().position(|method| *method == path)?;
        self.methods[method].started.fetch_add(1, Ordering::Relaxed);
        Some(Begun { shard: Arc::clone(self), method, began: Instant::now(), code: Code::Cancelled })
    }
}

impl Begun {
    /// Notes the code that headers or trailers have; OK where they have none.
    pub(crate) fn ends_with(&mut self, headers: &HeaderMap) {
        let code = headers.get(Status::GRPC_STATUS).map(|value| Code::from_bytes(value.as_bytes()));
        self.code = code.unwrap_or(Code::Ok);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let counts = &self.shard.methods[self.method];
        counts.handled[self.code as usize].fetch_add(1, Ordering::Relaxed);
        if is_unary(self.method) {
            counts.times.record(self.began.elapsed());
        }
    }
}
