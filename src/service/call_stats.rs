//! Counts calls and their outcomes for the metrics.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use http::{HeaderMap, Response};
use tonic::{Code, Status};

use super::{
    method::Method,
    trace::{CallTracer, Traced, TracedCall},
};
use crate::{
    histogram::{Histogram, Times},
    reason::{ErrorReason, REASONS},
    service::error::Refused,
};

/// The number of gRPC codes, 0 to 16.
const CODES: usize = 17;

const SHARDS: usize = 64;

/// The counts of all calls. Each thread has its own shard, so that threads do not contend for cache lines.
#[derive(Debug)]
pub(crate) struct CallStats(Box<[Arc<Shard>]>);

/// The counts of one thread, or of a few threads if there are many.
#[derive(Debug)]
pub(crate) struct Shard {
    methods: [Counts; Method::COUNT],
    refused: [AtomicU64; REASONS.len()],
}

#[derive(Debug, Default)]
struct Counts {
    started: AtomicU64,
    handled: [AtomicU64; CODES],
    times: Histogram,
}

/// The outcomes of the calls of one method.
#[derive(Clone, Debug, Default)]
pub(crate) struct MethodStats {
    pub(crate) service: &'static str,
    pub(crate) method: &'static str,
    pub(crate) is_unary: bool,
    pub(crate) started: u64,
    /// The number of calls that ended with each code.
    pub(crate) handled: [u64; CODES],
    pub(crate) times: Times,
}

/// A call in flight. If it is dropped before its end was recorded, it counts as cancelled.
#[derive(Debug)]
pub(crate) struct Begun {
    shard: Arc<Shard>,
    method: Method,
    began: Instant,
    code: Code,
    traced: Option<Box<Traced>>,
}

impl CallStats {
    pub(crate) fn new() -> Self {
        let shard = || Shard { methods: Default::default(), refused: [const { AtomicU64::new(0) }; REASONS.len()] };
        Self((0..SHARDS).map(|_| Arc::new(shard())).collect())
    }

    /// Returns the shard of the current thread.
    pub(crate) fn shard(&self) -> Arc<Shard> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static THREAD: usize = THREADS.fetch_add(1, Ordering::Relaxed);
        }
        Arc::clone(&self.0[THREAD.with(|thread| *thread) % SHARDS])
    }

    /// Returns the outcomes of the calls of each method so far.
    pub(crate) fn methods(&self) -> Vec<MethodStats> {
        let of = |which: Method| {
            let (service, method) = which.names();
            let counts = || self.0.iter().map(|shard| &shard.methods[which.index()]);
            let sum = |of: &dyn Fn(&Counts) -> &AtomicU64| -> u64 {
                counts().map(|counts| of(counts).load(Ordering::Relaxed)).sum()
            };
            MethodStats {
                service,
                method,
                is_unary: which.is_unary(),
                started: sum(&|counts| &counts.started),
                handled: std::array::from_fn(|code| sum(&|counts| &counts.handled[code])),
                times: Times::of(counts().map(|counts| &counts.times)),
            }
        };
        Method::all().map(of).collect()
    }

    /// Returns the number of refused calls so far, by reason.
    pub(crate) fn refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let sum = |n: usize| self.0.iter().map(|shard| shard.refused[n].load(Ordering::Relaxed)).sum();
        REASONS.iter().enumerate().map(move |(n, row)| (row.reason.name(), sum(n)))
    }
}

impl Shard {
    /// Counts the start of a call. Calls to unknown methods are not counted, because clients could invent any number of
    /// them.
    pub(crate) fn begin(self: &Arc<Self>, method: Method) -> Begun {
        self.methods[method.index()].started.fetch_add(1, Ordering::Relaxed);
        Begun { shard: Arc::clone(self), method, began: Instant::now(), code: Code::Cancelled, traced: None }
    }

    /// Counts a refusal, if the response is one.
    pub(crate) fn answered<B>(&self, response: &Response<B>) {
        if let Some(Refused(reason)) = response.extensions().get().and_then(Refused::of) {
            self.refuse(reason);
        }
    }

    fn refuse(&self, reason: ErrorReason) {
        self.refused[reason.index()].fetch_add(1, Ordering::Relaxed);
    }
}

impl Begun {
    /// Traces the call if there is a tracer or the log shows calls.
    #[inline]
    pub(crate) fn trace(&mut self, tracer: Option<&Arc<dyn CallTracer>>, peer: IpAddr, headers: &HeaderMap) {
        self.traced = Traced::begin(tracer, TracedCall { method: self.method.name(), peer, headers });
    }

    /// Returns the log span of the call, if the log shows calls.
    pub(crate) fn log(&self) -> Option<&tracing::Span> {
        self.traced.as_ref().map(|traced| traced.log()).filter(|log| !log.is_disabled())
    }

    /// Records that the server ends a stream with an error, whose status is in `trailers`.
    pub(super) fn is_refused(&mut self, reason: ErrorReason, trailers: &HeaderMap) {
        self.shard.refuse(reason);
        self.ends_with(trailers);
    }

    /// Records the gRPC code of headers or trailers. If they have none, the code is OK.
    pub(crate) fn ends_with(&mut self, headers: &HeaderMap) {
        let code = headers.get(Status::GRPC_STATUS).map(|value| Code::from_bytes(value.as_bytes()));
        self.code = code.unwrap_or(Code::Ok);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let counts = &self.shard.methods[self.method.index()];
        counts.handled[self.code as usize].fetch_add(1, Ordering::Relaxed);
        if self.method.is_unary() {
            counts.times.record(self.began.elapsed());
        }
        if let Some(traced) = self.traced.take() {
            traced.end(self.code, self.began.elapsed());
        }
    }
}
