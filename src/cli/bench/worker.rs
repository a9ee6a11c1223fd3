//! A thread of the loader, with its own runtime, connections, callers and observers.

use std::{
    cell::{OnceCell, RefCell},
    io,
    panic::{self, AssertUnwindSafe},
    pin::pin,
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use fastrand::Rng;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::{
    runtime::{self, LocalOptions},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, sleep_until},
};

use super::{
    caller::{Caller, Calls},
    connection::{self, Connection},
    cpu::CpuUse,
    failure::{Cause, Failure},
    mix::Kind,
    observer::{Deliveries, Observer},
    pace::{Pace, Window},
    plan::{Plan, Share},
    progress::Counters,
    ring::Ring,
    run::Stop,
    run_stats::{CallStats, DeliveryStats},
    stamps::Stamps,
};

/// How long to wait for answers after the last call was made.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How many connections a thread opens at the same time: no more than fit into a listener's backlog.
const CONNECTING: usize = 32;

/// The phase of a run, which all threads follow.
#[derive(Clone, Copy, Debug)]
pub(super) enum Phase {
    /// Connect, and open the streams.
    Prepare,
    /// Make calls.
    Run(Window),
    /// All calls are over. Observers wait for the remaining of `changes` events, unless the number is unknown.
    Settle { changes: Option<u64> },
}

/// An event that a thread reports.
#[derive(Debug)]
pub(super) enum Event {
    Ready,
    /// Its calls are over. Reports how often sessions changed, and whether that number is certain.
    Called {
        changes: u64,
        sure: bool,
    },
    Ended(Box<Outcome>),
    Failed(Failure),
    Panicked,
}

/// The results of a thread.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) calls: CallStats,
    pub(super) unsent: u64,
    pub(super) deliveries: DeliveryStats,
    /// The CPU time during the measured period. `None` if it was cut short.
    pub(super) cpu: Option<CpuUse>,
}

pub(super) struct Worker {
    pub(super) plan: Arc<Plan>,
    pub(super) index: usize,
    /// The number of threads.
    pub(super) threads: usize,
    pub(super) share: Share,
    /// `Some` if there are observers.
    pub(super) stamps: Option<Arc<Stamps>>,
    pub(super) counters: Arc<Counters>,
    pub(super) phases: watch::Receiver<Phase>,
    pub(super) stop: watch::Receiver<Option<Stop>>,
    pub(super) events: mpsc::UnboundedSender<Event>,
}

impl Worker {
    /// Starts the thread. It ends when its work is done, or soon after the sender of the phases is dropped.
    pub(super) fn start(self) -> io::Result<()> {
        thread::Builder::new().name(format!("bench-{}", self.index)).spawn(move || {
            let events = self.events.clone();
            // Report a panic, or the other threads would wait for this one.
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
                // This runtime must be created on its own thread.
                let runtime = runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
                runtime.map_err(Failure::from)?.block_on(self.work())
            }));
            // If the run was abandoned, nobody receives this.
            let _ = events.send(match outcome {
                Ok(Ok(outcome)) => Event::Ended(Box::new(outcome)),
                Ok(Err(failure)) => Event::Failed(failure),
                Err(_) => Event::Panicked,
            });
        })?;
        Ok(())
    }

    async fn work(mut self) -> Result<Outcome, Failure> {
        let connections = self.connect(self.share.connections.len()).await?;
        let deliveries = match &self.stamps {
            Some(stamps) => Some(self.deliveries(stamps)?),
            None => None,
        };
        let mut observers = JoinSet::new();
        if let Some(deliveries) = &deliveries {
            let streams = self.connect(self.share.observers.len()).await?;
            let streams = streams.into_iter().zip(&self.share.observers);
            let streams = streams.flat_map(|(connection, count)| (0..*count).map(move |_| connection.clone()));
            let subscribed: Vec<Observer> =
                stream::iter(streams.map(|connection| Observer::subscribe(Rc::clone(deliveries), connection)))
                    .buffer_unordered(CONNECTING)
                    .try_collect()
                    .await?;
            for observer in subscribed {
                observers.spawn_local(observer.run(self.phases.clone()));
            }
        }
        self.report(Event::Ready);
        let Some(window) = self.window().await else { return Ok(Outcome::default()) };
        if let Some(deliveries) = &deliveries {
            // This is the only place that sets it.
            let _ = deliveries.window.set(window);
        }
        let calls = Rc::new(self.calls(window)?);
        let cpu = self.make_calls(&calls, connections).await?;
        let stats = calls.stats.take();
        self.report(Event::Called { changes: stats.changes, sure: !stats.unsure });
        while let Some(ended) = observers.join_next().await {
            if let Err(panicked) = ended {
                panic::resume_unwind(panicked.into_panic());
            }
        }
        let deliveries = deliveries.map(|deliveries| deliveries.stats.take()).unwrap_or_default();
        Ok(Outcome { calls: stats, unsent: calls.pace.unsent(), deliveries, cpu })
    }

    async fn connect(&self, count: usize) -> Result<Vec<Connection>, Failure> {
        let connecting = (0..count).map(|_| connection::connect(&self.plan.target));
        stream::iter(connecting).buffer_unordered(CONNECTING).try_collect().await
    }

    fn deliveries(&self, stamps: &Arc<Stamps>) -> Result<Rc<Deliveries>, Failure> {
        Ok(Rc::new(Deliveries {
            head: self.head("Subscribe")?,
            auth_key_id: self.plan.auth_key_id,
            stamps: Arc::clone(stamps),
            counters: Arc::clone(&self.counters),
            window: OnceCell::new(),
            stats: RefCell::default(),
        }))
    }

    fn calls(&self, window: Window) -> Result<Calls, Failure> {
        let plan = &self.plan;
        let method = |kind: Kind| if plan.batch == 1 { kind.unary_method() } else { kind.batch_method() };
        let [has, create, destroy] = Kind::ALL.map(|kind| self.head(method(kind)));
        Ok(Calls {
            heads: [has?, create?, destroy?],
            auth_key_id: plan.auth_key_id,
            mix: plan.mix,
            batch: plan.batch,
            pace: Pace::new(window, plan.arrivals(self.index, self.threads, self.share.connections.len())),
            stamps: self.stamps.clone(),
            counters: Arc::clone(&self.counters),
            stats: RefCell::default(),
            in_flight: Default::default(),
        })
    }

    fn head(&self, method: &str) -> Result<http::Request<()>, Failure> {
        (self.plan.target.request(method)).map_err(|error| Failure { cause: Cause::Loader, message: error.to_string() })
    }

    /// Waits until the run may begin, and returns its times.
    async fn window(&mut self) -> Option<Window> {
        match *self.phases.wait_for(|phase| !matches!(phase, Phase::Prepare)).await.ok()? {
            Phase::Run(window) => Some(window),
            Phase::Prepare | Phase::Settle { .. } => None,
        }
    }

    fn report(&self, event: Event) {
        // If the run was abandoned, nobody receives this.
        let _ = self.events.send(event);
    }

    /// Makes the calls, and returns the CPU time that the thread used while it was measured.
    async fn make_calls(&self, calls: &Rc<Calls>, connections: Vec<Connection>) -> Result<Option<CpuUse>, Failure> {
        let window = calls.pace.window();
        sleep_until(window.start.into()).await;
        let mut callers = JoinSet::new();
        let mut lost = vec![false; connections.len()];
        let shares = connections.into_iter().zip(&self.share.connections);
        for (index, (connection, share)) in shares.enumerate() {
            for caller in share.clone() {
                let caller = Caller {
                    calls: Rc::clone(calls),
                    connection: connection.clone(),
                    ring: Ring::new(self.plan.sessions_of(caller)),
                    rng: Rng::new(),
                    asked: Vec::new(),
                    sure: true,
                };
                callers.spawn_local(async move { (index, caller.run().await) });
            }
        }
        let mut pacer = pin!(calls.pace.run());
        let mut measured = pin!(measure(window, self.stop.clone()));
        let mut deadline = pin!(sleep(Duration::ZERO));
        let mut cpu = None;
        // Callers end early if they lose their connections. A thread without callers has only observers.
        while !callers.is_empty() || (cpu.is_none() && !lost.contains(&true)) {
            tokio::select! {
                Some(ended) = callers.join_next() => match ended {
                    Ok((index, gone)) => lost[index] |= gone,
                    Err(panicked) => panic::resume_unwind(panicked.into_panic()),
                },
                Err(error) = &mut pacer => return Err(error.into()),
                used = &mut measured, if cpu.is_none() => {
                    cpu = Some(used);
                    calls.pace.stop();
                    deadline.as_mut().reset(tokio::time::Instant::now() + ANSWER_TIMEOUT);
                }
                () = &mut deadline, if cpu.is_some() => break,
            }
        }
        calls.stats.borrow_mut().connections_lost = lost.iter().filter(|lost| **lost).count() as u64;
        for (kind, in_flight) in Kind::ALL.into_iter().zip(&calls.in_flight) {
            for _ in 0..in_flight.get() {
                let message = format!("no answer {} s after the run", ANSWER_TIMEOUT.as_secs());
                calls.stats.borrow_mut().fail(kind, Failure { cause: Cause::Unanswered, message });
            }
        }
        Ok(cpu.flatten())
    }
}

/// Waits for the end of the run, and returns the CPU time that this thread has used since the warm-up.
async fn measure(window: Window, mut stop: watch::Receiver<Option<Stop>>) -> Option<CpuUse> {
    let measured = async {
        sleep_until(window.measured_from.into()).await;
        CpuUse::now()
    };
    let stopped = async {
        // An error means that the run was abandoned.
        let _ = stop.wait_for(Option::is_some).await;
    };
    let mut stopped = pin!(stopped);
    let from = tokio::select! {
        from = measured => from,
        () = &mut stopped => return None,
    };
    tokio::select! {
        () = sleep_until(window.end.into()) => {}
        () = &mut stopped => {}
    }
    Some(CpuUse::now() - from)
}

/// Returns the times of the run. It begins a little later than now, so that all threads begin together.
pub(super) fn window(plan: &Plan) -> Window {
    let start = Instant::now() + Duration::from_millis(20);
    Window { start, measured_from: start + plan.warmup, end: start + plan.warmup + plan.duration }
}
