//! The results of a run.

mod json;
mod text;

use std::time::Duration;

use super::{
    plan::Plan,
    run_stats::{CallStats, DeliveryStats},
    worker::Outcome,
};
pub(super) use text::amount;

/// A thread that ran or waited for a core for more than this share of the time was too busy.
const BUSY: f64 = 0.9;

/// The results of a run.
pub(super) struct Report {
    plan: Plan,
    /// How long the run was measured.
    measured: Duration,
    interrupted: bool,
    /// How often sessions were created and destroyed. `None` if a create or destroy failed, because its effect is
    /// unknown.
    changes: Option<u64>,
    calls: CallStats,
    /// Calls of an open loop that were due but never sent.
    unsent: u64,
    deliveries: DeliveryStats,
    loader: Option<Loader>,
}

/// What the loader itself used.
struct Loader {
    threads: usize,
    /// The average shares of the time that its threads ran, and waited for a core.
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

    /// Describes the promises that the server broke, if any.
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
        check(ends.violations, "events were repeated or out of order");
        check(lost, "observers did not receive exactly the changes that were made");
        (!broken.is_empty()).then(|| format!("the server broke its promises: {}", broken.join(", ")))
    }

    /// Describes the failures that broke no promise, if any.
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

    /// Divides `count` by the measured seconds.
    fn per_second(&self, count: u64) -> f64 {
        if self.measured.is_zero() { 0.0 } else { count as f64 / self.measured.as_secs_f64() }
    }
}

impl Loader {
    /// Returns `None` if a thread did not reach the end of the run.
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

    /// Returns whether the run shows what the loader can do rather than the server.
    fn is_bottleneck(&self) -> bool {
        self.busiest > BUSY
    }
}
