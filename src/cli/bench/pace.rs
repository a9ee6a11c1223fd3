//! The pace of calls: when each one begins.
//!
//! A closed loop makes the next call when the last one is answered. An open loop makes calls at a fixed rate whatever
//! the server does, and measures each from the time it was due. A server that stalls is thus charged for every call
//! that it kept waiting (no "coordinated omission").

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, oneshot};

use super::timer::Timer;

/// The period in which calls begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) start: Instant,
    /// The end of the warm-up.
    pub(super) measured_from: Instant,
    pub(super) end: Instant,
}

/// The pace for the callers of one thread.
pub(super) struct Pace {
    window: Window,
    stopped: Cell<Option<Instant>>,
    schedule: Option<Schedule>,
}

/// The arrivals of an open loop.
///
/// Free callers take them one after another. If no caller is free, arrivals wait here at no cost and keep the times at
/// which they were due.
struct Schedule {
    arrivals: Arrivals,
    taken: Cell<u64>,
    /// Callers that wait for their arrival, ordered by the time at which it is due.
    waiting: RefCell<VecDeque<(Instant, oneshot::Sender<()>)>>,
    someone_waits: Notify,
}

/// The times of evenly spaced calls.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrivals {
    pub(super) calls_per_second: f64,
    /// The delay of the first call, as a share of the interval. It differs between threads, so that they do not call in
    /// step.
    pub(super) phase: f64,
}

impl Arrivals {
    fn due(&self, start: Instant, number: u64) -> Instant {
        start + Duration::from_secs_f64((number as f64 + self.phase) / self.calls_per_second)
    }

    /// Returns how many calls are due before `end`.
    fn due_before(&self, start: Instant, end: Instant) -> u64 {
        let span = end.saturating_duration_since(start).as_secs_f64();
        (span * self.calls_per_second - self.phase).max(0.0).ceil() as u64
    }
}

impl Pace {
    pub(super) fn new(window: Window, arrivals: Option<Arrivals>) -> Self {
        let schedule = arrivals.map(|arrivals| Schedule {
            arrivals,
            taken: Cell::new(0),
            waiting: RefCell::default(),
            someone_waits: Notify::new(),
        });
        Self { window, stopped: Cell::new(None), schedule }
    }

    pub(super) fn window(&self) -> Window {
        self.window
    }

    /// Returns when the next call is due, which is never in the future. Returns `None` if there is no next call.
    pub(super) async fn next(&self) -> Option<Instant> {
        let now = Instant::now();
        if self.stopped.get().is_some() || now >= self.window.end {
            return None;
        }
        let Some(schedule) = &self.schedule else { return Some(now) };
        let number = schedule.taken.get();
        let due = schedule.arrivals.due(self.window.start, number);
        if due >= self.window.end {
            return None;
        }
        schedule.taken.set(number + 1);
        if due > now {
            let (wake, woken) = oneshot::channel();
            schedule.waiting.borrow_mut().push_back((due, wake));
            schedule.someone_waits.notify_one();
            // If the sender is dropped, the pace was stopped.
            woken.await.ok()?;
        }
        Some(due)
    }

    /// Wakes the callers whose arrival is due. Returns only if the timer fails.
    pub(super) async fn run(&self) -> io::Result<()> {
        let Some(schedule) = &self.schedule else { return std::future::pending().await };
        let mut timer = Timer::new()?;
        loop {
            let first = schedule.waiting.borrow().front().map(|(due, _)| *due);
            let Some(first) = first else {
                schedule.someone_waits.notified().await;
                continue;
            };
            timer.until(first).await?;
            let now = Instant::now();
            let mut waiting = schedule.waiting.borrow_mut();
            let count = waiting.partition_point(|(due, _)| *due <= now);
            for (_, wake) in waiting.drain(..count) {
                // A caller that lost its connection no longer waits.
                let _ = wake.send(());
            }
        }
    }

    /// Lets no more calls begin.
    pub(super) fn stop(&self) {
        if self.stopped.get().is_none() {
            self.stopped.set(Some(Instant::now()));
        }
        if let Some(schedule) = &self.schedule {
            schedule.waiting.borrow_mut().clear();
        }
    }

    /// Returns how many calls were due but did not begin, because every caller was waiting for an answer.
    pub(super) fn unsent(&self) -> u64 {
        let Some(schedule) = &self.schedule else { return 0 };
        let end = self.stopped.get().map_or(self.window.end, |stopped| stopped.min(self.window.end));
        schedule.arrivals.due_before(self.window.start, end).saturating_sub(schedule.taken.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(length: Duration) -> Window {
        let start = Instant::now();
        Window { start, measured_from: start, end: start + length }
    }

    #[tokio::test]
    async fn arrivals_keep_the_times_at_which_they_were_due() {
        let window = window(Duration::from_secs(60));
        let pace = Pace::new(window, Some(Arrivals { calls_per_second: 1000.0, phase: 0.5 }));
        tokio::select! {
            result = pace.run() => result.unwrap(),
            () = async {
                for number in 0..20_u64 {
                    let due = pace.next().await.unwrap();
                    assert!(due <= Instant::now());
                    let micros = (due - window.start).as_micros() as u64;
                    assert_eq!(micros, 500 + 1000 * number);
                    if number == 3 {
                        // Stall like a caller of a stalled server. What became due in the meantime is returned
                        // immediately.
                        std::thread::sleep(Duration::from_millis(10));
                    }
                }
            } => {}
        }
    }

    #[tokio::test]
    async fn calls_without_a_free_caller_are_counted() {
        let window = window(Duration::from_millis(50));
        let pace = Pace::new(window, Some(Arrivals { calls_per_second: 1000.0, phase: 0.0 }));
        assert!(pace.next().await.is_some());
        std::thread::sleep(Duration::from_millis(60));
        assert!(pace.next().await.is_none());
        assert_eq!(pace.unsent(), 49);
    }

    #[tokio::test]
    async fn stop_ends_every_wait() {
        let window = window(Duration::from_secs(60));
        for arrivals in [None, Some(Arrivals { calls_per_second: 0.001, phase: 0.5 })] {
            let pace = Pace::new(window, arrivals);
            let waits = pace.schedule.is_some();
            tokio::join!(
                async {
                    if waits {
                        assert!(pace.next().await.is_none());
                    }
                },
                async { pace.stop() }
            );
            assert!(pace.next().await.is_none());
            assert_eq!(pace.unsent(), 0);
        }
    }
}
