//! Shows the progress of a run on one line of the terminal.

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use super::{pace::Window, report::amount};

const BAR: usize = 30;

/// Returns to the start of the line and erases it. All current terminals support this.
const ERASE: &str = "\r\x1b[K";

/// The progress of one thread, readable by others.
#[derive(Debug, Default)]
pub(super) struct Counters {
    calls: AtomicU64,
    failures: AtomicU64,
    deliveries: AtomicU64,
}

impl Counters {
    pub(super) fn call(&self, succeeded: bool) {
        let counter = if succeeded { &self.calls } else { &self.failures };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn deliver(&self, events: u64) {
        self.deliveries.fetch_add(events, Ordering::Relaxed);
    }
}

/// The progress line, which is shown only if standard error is a terminal.
pub(super) struct ProgressLine {
    threads: Vec<Arc<Counters>>,
    visible: bool,
    last: Seen,
}

#[derive(Clone, Copy)]
struct Seen {
    at: Instant,
    calls: u64,
    deliveries: u64,
}

impl ProgressLine {
    pub(super) fn new(threads: Vec<Arc<Counters>>) -> Self {
        let last = Seen { at: Instant::now(), calls: 0, deliveries: 0 };
        Self { threads, visible: io::stderr().is_terminal(), last }
    }

    fn sum(&self, counter: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        self.threads.iter().map(|thread| counter(thread).load(Ordering::Relaxed)).sum()
    }

    /// Shows a message: what the program is doing before or after the measured run.
    pub(super) fn say(&self, what: &str) {
        self.write(what);
    }

    /// Shows the progress of the run.
    pub(super) fn show(&mut self, window: Window) {
        if !self.visible {
            return;
        }
        let now = Instant::now();
        let seen = Seen { at: now, calls: self.sum(|of| &of.calls), deliveries: self.sum(|of| &of.deliveries) };
        let seconds = (now - self.last.at).as_secs_f64().max(0.001);
        let rate = |now: u64, then: u64| amount((now - then) as f64 / seconds);
        let (phase, from, to) = if now < window.measured_from {
            ("warming up", window.start, window.measured_from)
        } else {
            ("measuring", window.measured_from, window.end)
        };
        let whole = to.saturating_duration_since(from).as_secs_f64().max(0.001);
        let share = (now.saturating_duration_since(from).as_secs_f64() / whole).min(1.0);
        let filled = (share * BAR as f64) as usize;
        let bar = "#".repeat(filled) + &".".repeat(BAR - filled);
        let mut line = format!("{phase} [{bar}] {:.0}%, {} calls/s", share * 100.0, rate(seen.calls, self.last.calls));
        if seen.deliveries > 0 {
            line += &format!(", {} deliveries/s", rate(seen.deliveries, self.last.deliveries));
        }
        let failures = self.sum(|of| &of.failures);
        if failures > 0 {
            line += &format!(", {} failed", amount(failures as f64));
        }
        self.last = seen;
        self.write(&line);
    }

    fn write(&self, line: &str) {
        if self.visible {
            let mut stderr = io::stderr().lock();
            // If the terminal is gone, nothing can be shown.
            let _ = write!(stderr, "{ERASE}{line}").and_then(|()| stderr.flush());
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.write("");
    }
}
