//! A run from start to end: initial sessions, threads, phases and clean-up.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sessiond::{
    client::{Client, ClientError, MAX_BATCH},
    session::SessionKey,
};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};

use super::{
    super::exit::{CliError, Exit},
    plan::Plan,
    progress::{Counters, ProgressLine},
    report::Report,
    stamps::Stamps,
    worker::{Event, Phase, Worker, window},
};

const REDRAW: Duration = Duration::from_millis(200);

/// A run that has been prepared.
pub(super) struct Run {
    plan: Arc<Plan>,
    counters: Vec<Arc<Counters>>,
    stop: watch::Sender<Option<Stop>>,
    progress: ProgressLine,
}

/// A request to make no more calls.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stop {
    pub(super) at: Instant,
    /// Whether a signal stopped the run, rather than its end.
    pub(super) interrupted: bool,
}

impl Run {
    /// Prepares a run of `plan`, which ends early if `stop` is set.
    pub(super) fn new(plan: Plan, stop: watch::Sender<Option<Stop>>) -> Self {
        let counters: Vec<Arc<Counters>> = plan.shares().iter().map(|_| Arc::default()).collect();
        let progress = ProgressLine::new(counters.clone());
        Self { plan: Arc::new(plan), counters, stop, progress }
    }

    /// Creates the sessions that exist before the first call. Returns false if the run was stopped.
    pub(super) async fn fill(&self, client: &Client) -> Result<bool, ClientError> {
        self.progress.say("creating the initial sessions");
        let mut existing = self.plan.existing_at_first();
        while let Some(keys) = self.batch(&mut existing) {
            if self.stop.borrow().is_some() {
                return Ok(false);
            }
            if client.batch_create(&keys).await?.contains(&false) {
                return Err(ClientError::Protocol("sessions already existed under a random auth key"));
            }
        }
        Ok(true)
    }

    /// Destroys all sessions of the run.
    pub(super) async fn clean_up(&self, client: &Client) -> Result<(), ClientError> {
        self.progress.say("destroying the sessions of the run");
        let mut all = 0..self.plan.sessions;
        while let Some(keys) = self.batch(&mut all) {
            client.batch_destroy(&keys).await?;
        }
        Ok(())
    }

    fn batch(&self, sessions: &mut impl Iterator<Item = u32>) -> Option<Vec<SessionKey>> {
        let key = |session: u32| SessionKey::new(self.plan.auth_key_id, session.into());
        let keys: Vec<_> = sessions.take(MAX_BATCH).map(key).collect();
        (!keys.is_empty()).then_some(keys)
    }

    /// Makes the calls and measures them. Returns `None` if the run was stopped before it began.
    pub(super) async fn measure(&mut self) -> Result<Option<Report>, CliError> {
        self.progress.say("connecting");
        let stamps = (self.plan.observers > 0).then(|| Arc::new(self.stamps()));
        let shares = self.plan.shares();
        let threads = shares.len();
        let calling = shares.iter().filter(|share| !share.connections.is_empty()).count();
        let (phase, phases) = watch::channel(Phase::Prepare);
        let (sender, mut events) = mpsc::unbounded_channel();
        for (index, (share, counters)) in shares.into_iter().zip(&self.counters).enumerate() {
            let worker = Worker {
                plan: Arc::clone(&self.plan),
                index,
                threads,
                share,
                stamps: stamps.clone(),
                counters: Arc::clone(counters),
                phases: phases.clone(),
                stop: self.stop.subscribe(),
                events: sender.clone(),
            };
            worker.start().map_err(|error| {
                CliError::new(Exit::No, format!("cannot start a thread: {error}: try fewer with --threads"))
            })?;
        }
        // Only the threads keep clones, so if one of them panics, nothing waits for it forever.
        drop((sender, phases));

        let mut stopped = self.stop.subscribe();
        for _ in 0..threads {
            tokio::select! {
                event = events.recv() => drop(self.unless_failed(event)?),
                _ = stopped.wait_for(Option::is_some) => return Ok(None),
            }
        }

        let window = window(&self.plan);
        phase.send_replace(Phase::Run(window));
        let mut redraw = interval(REDRAW);
        redraw.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut called, mut changes, mut sure) = (0, 0, true);
        let mut outcomes = Vec::new();
        while called < threads {
            tokio::select! {
                event = events.recv() => match self.unless_failed(event)? {
                    Event::Called { changes: theirs, sure: known } => {
                        called += 1;
                        changes += theirs;
                        sure &= known;
                    }
                    // A thread without observers, or whose streams are lost, has nothing to wait for.
                    Event::Ended(outcome) => outcomes.push(*outcome),
                    _ => {}
                },
                _ = redraw.tick() => self.progress.show(window),
            }
            if called >= calling {
                // The remaining threads only have observers and do not know that all calls are made.
                self.stop.send_if_modified(|stop| {
                    let first = stop.is_none();
                    stop.get_or_insert_with(|| Stop { at: Instant::now(), interrupted: false });
                    first
                });
            }
        }
        let stop = *self.stop.borrow();

        self.progress.say("waiting for the last events");
        phase.send_replace(Phase::Settle { changes: sure.then_some(changes) });
        while outcomes.len() < threads {
            if let Event::Ended(outcome) = self.unless_failed(events.recv().await)? {
                outcomes.push(*outcome);
            }
        }
        let end = stop.map_or(window.end, |stop| stop.at.min(window.end));
        let measured = end.saturating_duration_since(window.measured_from);
        let interrupted = stop.is_some_and(|stop| stop.interrupted);
        Ok(Some(Report::new(&self.plan, measured, interrupted, sure.then_some(changes), outcomes)))
    }

    fn stamps(&self) -> Stamps {
        let mut existing = self.plan.existing_at_first().peekable();
        Stamps::new((0..self.plan.sessions).map(|session| existing.next_if_eq(&session).is_some()))
    }

    fn unless_failed(&self, event: Option<Event>) -> Result<Event, CliError> {
        match event {
            Some(Event::Failed(failure)) => {
                let addr = self.plan.target.as_str();
                let advice = "and check its limits and those of this process";
                Err(CliError::new(Exit::Server, format!("{failure}: check that a sessiond runs at {addr}, {advice}")))
            }
            Some(Event::Panicked) | None => {
                Err(CliError::new(Exit::No, "a thread of the loader panicked: please report this"))
            }
            Some(event) => Ok(event),
        }
    }
}
