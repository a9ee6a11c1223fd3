//! When calls begin.
//!
//! A closed loop makes the next call when the last one is answered. An open loop makes calls at a fixed rate whatever the
//! server does, and measures each from when it was to begin: a server that stalls is charged for every call that it kept
//! waiting (no "coordinated omission").

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, oneshot};

use super::timer::Timer;

/// The times between which calls begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) start: Instant,
    /// The warm-up is over.
    pub(super) measured_from: Instant,
    pub(super) end: Instant,
}

/// The pace of the callers of a thread.
pub(super) struct Pace {
    window: Window,
    stopped: Cell<Option<Instant>>,
    schedule: Option<Schedule>,
}

/// The arrivals of an open loop. They are taken one after the other by whichever caller is free, so when none is free they wait
/// here, at no cost, and keep the times at which they were due.
struct Schedule {
    arrivals: Arrivals,
    taken: Cell<u64>,
    /// Those who wait for their arrival, in the order in which they are due.
    waiting: RefCell<VecDeque<(Instant, oneshot::Sender<()>)>>,
    someone_waits: Notify,
}

/// The times of evenly spaced calls.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrivals {
    pub(super) calls_per_second: f64,
    /// The first one's share of the space between two, so that threads do not call in step.
    pub(super) phase: f64,
}

impl Arrivals {
    fn due(&self, start: Instant, number: u64) -> Instant {
        start + Duration::from_secs_f64((number as f64 + self.phase) / self.calls_per_second)
    }

    /// How many are due before `end`.
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

    /// When the next call is to begin, which is never in the future; none when there is no next call.
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
            // Stopped, if nobody will wake it.
            woken.await.ok()?;
        }
        Some(due)
    }

    /// Wakes those who wait for their arrival. Never returns but for an error of the timer.
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
                // A caller whose connection broke is gone.
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

    /// How many calls were due and did not begin, because every caller waited for an answer.
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
                        // Stalls as a caller does whose server does; what was due meanwhile comes at once.
                        std::thread::sleep(Duration::from_millis(10));
                    }
                }
            } => {}
        }
    }

    #[tokio::test]
    async fn what_nobody_was_free_for_is_counted() {
        let window = window(Duration::from_millis(50));
        let pace = Pace::new(window, Some(Arrivals { calls_per_second: 1000.0, phase: 0.0 }));
        assert!(pace.next().await.is_some());
        std::thread::sleep(Duration::from_millis(60));
        assert!(pace.next().await.is_none());
        assert_eq!(pace.unsent(), 49);
    }

    #[tokio::test]
    async fn stopping_ends_every_wait() {
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
