//! What a run found.

mod json;
mod text;

use std::time::Duration;

use super::{
    plan::Plan,
    stats::{CallStats, DeliveryStats},
    worker::Outcome,
};
pub(super) use text::amount;

/// A thread that ran, or wanted to run, for a larger share of the time is taken to have had no time to spare.
const BUSY: f64 = 0.9;

/// What a run found.
pub(super) struct Report {
    plan: Plan,
    /// How long it was measured.
    measured: Duration,
    interrupted: bool,
    /// How often sessions were created and destroyed; unknown where a call that does so failed.
    changes: Option<u64>,
    calls: CallStats,
    /// Calls of an open loop that were due and never sent.
    unsent: u64,
    deliveries: DeliveryStats,
    loader: Option<Loader>,
}

/// What the loader itself took.
struct Loader {
    threads: usize,
    /// Shares of the time that all threads had.
    ran: f64,
    waited: f64,
    /// The share of its time that the busiest thread ran or waited for a core.
    busiest: f64,
    cpu: Duration,
}

impl Report {
    pub(super) fn new(
        plan: &Plan,
        measured: Duration,
        interrupted: bool,
        changes: Option<u64>,
        outcomes: Vec<Outcome>,
    ) -> Self {
        let loader = Loader::new(measured, &outcomes);
        let (mut calls, mut deliveries, mut unsent) = (CallStats::default(), DeliveryStats::default(), 0);
        for outcome in outcomes {
            calls.merge(outcome.calls);
            deliveries.merge(outcome.deliveries);
            unsent += outcome.unsent;
        }
        Self { plan: plan.clone(), measured, interrupted, changes, calls, unsent, deliveries, loader }
    }

    /// What the server did that it promises never to do.
    pub(super) fn broken_promise(&self) -> Option<String> {
        let ends = &self.deliveries.ends;
        let lost = if self.changes.is_some() && ends.lost == 0 && ends.resets == 0 {
            u64::from(self.plan.observers) - ends.complete
        } else {
            0
        };
        let mut broken = Vec::new();
        let mut check = |count: u64, what: &str| {
            if count > 0 {
                broken.push(format!("{count} {what}"));
            }
        };
        check(self.calls.wrong(), "answers were wrong");
        check(ends.violations, "events came twice or out of order");
        check(lost, "observers did not hear of exactly the changes that were made");
        (!broken.is_empty()).then(|| format!("the server broke its promises: {}", broken.join(", ")))
    }

    /// What went wrong otherwise.
    pub(super) fn trouble(&self) -> Option<String> {
        let (failures, ends) = (self.calls.failures(), &self.deliveries.ends);
        if failures == 0 && ends.lost == 0 && self.calls.connections_lost == 0 {
            return None;
        }
        let lost = self.calls.connections_lost;
        let mut trouble =
            format!("{failures} calls failed, {lost} connections were lost and {} streams ended", ends.lost);
        if let Some(first) = self.calls.first_failure.as_ref().or(ends.first_failure.as_ref()) {
            trouble += &format!(" (one of the failures: {first})");
        }
        Some(trouble + ": see the server's log")
    }

    /// `count` for each second of the measured time.
    fn per_second(&self, count: u64) -> f64 {
        if self.measured.is_zero() { 0.0 } else { count as f64 / self.measured.as_secs_f64() }
    }
}

impl Loader {
    /// None where a thread did not come to the end of the run.
    fn new(measured: Duration, outcomes: &[Outcome]) -> Option<Self> {
        let seconds = measured.as_secs_f64();
        let uses: Vec<_> = outcomes.iter().map(|outcome| outcome.cpu).collect::<Option<_>>()?;
        if uses.is_empty() || seconds == 0.0 {
            return None;
        }
        let share = |time: Duration| time.as_secs_f64() / seconds;
        let cpu = uses.iter().map(|used| used.ran).sum();
        let waited = uses.iter().filter_map(|used| used.waited).sum();
        let busiest = uses.iter().map(|used| share(used.ran + used.waited.unwrap_or_default()));
        Some(Self {
            threads: uses.len(),
            ran: share(cpu) / uses.len() as f64,
            waited: share(waited) / uses.len() as f64,
            busiest: busiest.fold(0.0, f64::max),
            cpu,
        })
    }

    /// Whether the run shows what the loader can do, and not what the server can.
    fn is_bottleneck(&self) -> bool {
        self.busiest > BUSY
    }
}
