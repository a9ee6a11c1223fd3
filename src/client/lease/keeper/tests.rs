//! Tests the keeper against a mock registry on a paused clock.

use std::{
    collections::HashMap,
    future::pending,
    sync::{Arc, Mutex},
};

use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::Status;

use super::*;
use crate::client::{LeaseEvent, LeaseEvents};

const TTL: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Answers,
    /// Every call fails as if the registry were unreachable.
    Unreachable,
    /// No call is answered.
    Hangs,
    /// Every call is refused with an error that is not retryable.
    Refuses,
}

#[derive(Default)]
struct Leases {
    mode: Mode,
    /// The existing leases and when they expire.
    live: HashMap<LeaseId, Instant>,
    granted: u64,
    /// When each call was made.
    calls: Vec<Instant>,
    reconnects: usize,
}

#[derive(Clone, Default)]
struct Model(Arc<Mutex<Leases>>);

impl Model {
    async fn admit(&self) -> Result<(), ClientError> {
        let mode = {
            let mut leases = self.0.lock().unwrap();
            let now = Instant::now();
            leases.calls.push(now);
            if leases.mode == Mode::Answers {
                leases.live.retain(|_, expires| *expires > now);
            }
            leases.mode
        };
        match mode {
            Mode::Answers => Ok(()),
            Mode::Unreachable => Err(Status::unavailable("unreachable").into()),
            Mode::Refuses => Err(Status::permission_denied("refused").into()),
            Mode::Hangs => pending().await,
        }
    }

    fn set(&self, mode: Mode) {
        self.0.lock().unwrap().mode = mode;
    }

    /// Answers again and gives every lease its full ttl, as after an outage.
    fn restart(&self) {
        let mut leases = self.0.lock().unwrap();
        leases.mode = Mode::Answers;
        leases.live.values_mut().for_each(|expires| *expires = Instant::now() + TTL);
    }

    fn expires(&self, lease: LeaseId) -> Option<Instant> {
        self.0.lock().unwrap().live.get(&lease).copied()
    }

    /// Returns the pauses between calls since this was last called.
    fn pauses(&self) -> Vec<Duration> {
        let calls = std::mem::take(&mut self.0.lock().unwrap().calls);
        calls.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    fn reconnects(&self) -> usize {
        self.0.lock().unwrap().reconnects
    }
}

impl Registry for Model {
    async fn grant(&self) -> Result<LeaseGrant, ClientError> {
        self.admit().await?;
        let mut leases = self.0.lock().unwrap();
        leases.granted += 1;
        let id = lease(leases.granted);
        leases.live.insert(id, Instant::now() + TTL);
        Ok(LeaseGrant { id, ttl: TTL })
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, ClientError> {
        self.admit().await?;
        let mut leases = self.0.lock().unwrap();
        let expires = leases.live.get_mut(&lease).ok_or_else(|| ClientError::from(Status::not_found("gone")))?;
        *expires = Instant::now() + TTL;
        Ok(TTL)
    }

    async fn revoke(&self, lease: LeaseId, _: Duration) -> Result<u64, ClientError> {
        self.admit().await?;
        let removed = self.0.lock().unwrap().live.remove(&lease);
        removed.map(|_| 5).ok_or_else(|| Status::not_found("gone").into())
    }

    fn reconnect(&mut self) {
        self.0.lock().unwrap().reconnects += 1;
    }
}

fn lease(number: u64) -> LeaseId {
    LeaseId::from_number(number).unwrap()
}

struct Guard {
    events: LeaseEvents,
    stop: oneshot::Sender<Revoke>,
    task: JoinHandle<()>,
}

impl Guard {
    /// Returns the event that happens within `time`, if any.
    async fn event(&mut self, time: Duration) -> Option<LeaseEvent> {
        timeout(time, self.events.next()).await.ok().map(|event| event.expect("the keeper is running"))
    }
}

async fn start() -> (Model, Guard) {
    let model = Model::default();
    let keeper = Keeper::start(model.clone()).await.unwrap();
    let events = LeaseEvents::new(keeper.state(), lease(1));
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(keeper.run(stopped));
    (model, Guard { events, stop, task })
}

#[tokio::test(start_paused = true)]
async fn lease_is_kept_alive_about_three_times_per_ttl() {
    let (model, mut guard) = start().await;
    assert_eq!(guard.event(TTL * 100).await, None);
    let pauses = model.pauses();
    assert!(pauses.len() >= 300, "{}", pauses.len());
    // Tokio's timers are exact to a millisecond.
    let turn = TTL / 3 * 8 / 10..=TTL / 3 + Duration::from_millis(2);
    assert!(pauses.iter().all(|pause| turn.contains(pause)), "{pauses:?}");
    assert_ne!(pauses[0], pauses[1], "the intervals are random");
    assert_eq!(model.reconnects(), 0);
}

#[tokio::test(start_paused = true)]
async fn outage_shorter_than_the_ttl_has_no_effect() {
    for mode in [Mode::Unreachable, Mode::Hangs, Mode::Refuses] {
        let (model, mut guard) = start().await;
        for _ in 0..100 {
            model.set(mode);
            // The last keep-alive was up to an interval ago, so more than a quarter of the ttl is left. A hung try
            // takes half of that, and the pause after it a tenth of the ttl.
            assert_eq!(guard.event(TTL * 2 / 5).await, None);
            model.set(Mode::Answers);
            assert_eq!(guard.event(TTL / 2).await, None);
        }
        assert_eq!(model.reconnects() > 0, mode == Mode::Hangs, "only an unanswered call needs a new connection");
    }
}

#[tokio::test(start_paused = true)]
async fn retries_are_frequent_before_and_after_the_lease_is_lost() {
    let (model, mut guard) = start().await;
    model.set(Mode::Unreachable);
    assert_eq!(guard.event(TTL * 2).await, Some(LeaseEvent::Lost));
    let pauses = model.pauses();
    assert!(pauses[1..].iter().all(|pause| *pause <= TTL / 10 + Duration::from_millis(2)), "{pauses:?}");
    // Skip the pause that was planned before the loss.
    sleep(TTL / 10).await;
    model.pauses();
    sleep(TTL * 100).await;
    let pauses = model.pauses();
    assert!(pauses.iter().all(|pause| *pause <= Duration::from_millis(1002)), "{pauses:?}");
    assert!(pauses.len() < 300 * TTL.as_secs() as usize, "{} tries", pauses.len());
}

#[tokio::test(start_paused = true)]
async fn loss_is_reported_when_the_ttl_has_passed_and_not_before() {
    for mode in [Mode::Unreachable, Mode::Hangs, Mode::Refuses] {
        let (model, mut guard) = start().await;
        for _ in 0..20 {
            // At a random moment between two keep-alives.
            assert_eq!(guard.event(TTL.mul_f64(fastrand::f64())).await, None);
            model.set(mode);
            let expires = model.expires(lease(1)).unwrap();
            assert_eq!(guard.event(TTL * 2).await, Some(LeaseEvent::Lost));
            let late = Instant::now().checked_duration_since(expires).expect("reported before the lease expired");
            assert!(late <= Duration::from_millis(2), "{late:?}");
            model.restart();
            // A hung try must time out first.
            assert_eq!(guard.event(TTL).await, Some(LeaseEvent::Recovered));
        }
        assert_eq!(model.0.lock().unwrap().granted, 1, "no lease was gone");
    }
}

#[tokio::test(start_paused = true)]
async fn lease_that_expired_during_an_outage_is_replaced() {
    let (model, mut guard) = start().await;
    for number in 2..10 {
        model.set(Mode::Unreachable);
        assert_eq!(guard.event(TTL * 2).await, Some(LeaseEvent::Lost));
        sleep(Duration::from_secs(1)).await;
        model.set(Mode::Answers);
        assert_eq!(guard.event(TTL).await, Some(LeaseEvent::Regranted(lease(number))));
        assert_eq!(guard.event(TTL * 3).await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn lease_revoked_by_someone_else_is_replaced_by_the_next_keep_alive() {
    let (model, mut guard) = start().await;
    model.revoke(lease(1), Duration::ZERO).await.unwrap();
    assert_eq!(guard.event(TTL / 3 + Duration::from_millis(2)).await, Some(LeaseEvent::Regranted(lease(2))));
    assert_eq!(guard.event(TTL * 3).await, None);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_guard_revokes_the_lease_and_ends_the_task() {
    let (model, mut guard) = start().await;
    sleep(TTL * 5).await;
    drop(guard.stop);
    assert_eq!(guard.events.next().await, None);
    timeout(TTL, guard.task).await.unwrap().unwrap();
    assert_eq!(model.expires(lease(1)), None);
}

#[tokio::test(start_paused = true)]
async fn revoke_interrupts_a_hung_try() {
    let (model, guard) = start().await;
    model.set(Mode::Hangs);
    sleep(TTL / 2).await;
    model.set(Mode::Answers);
    let (reply, answer) = oneshot::channel();
    guard.stop.send(Revoke { linger: Duration::ZERO, reply }).unwrap();
    assert_eq!(answer.await.unwrap().unwrap(), 5);
    timeout(TTL, guard.task).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn ttl_out_of_range_causes_no_busy_loop() {
    struct Odd(Duration, Mutex<u32>);
    impl Registry for Odd {
        async fn grant(&self) -> Result<LeaseGrant, ClientError> {
            Ok(LeaseGrant { id: lease(1), ttl: self.0 })
        }
        async fn keep_alive(&self, _: LeaseId) -> Result<Duration, ClientError> {
            *self.1.lock().unwrap() += 1;
            assert!(*self.1.lock().unwrap() < 100);
            Ok(self.0)
        }
        async fn revoke(&self, _: LeaseId, _: Duration) -> Result<u64, ClientError> {
            Ok(0)
        }
        fn reconnect(&mut self) {}
    }
    for ttl in [Duration::ZERO, Duration::MAX] {
        let keeper = Keeper::start(Odd(ttl, Mutex::default())).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(keeper.run(stopped));
        sleep(Duration::from_secs(10)).await;
        drop(stop);
        task.await.unwrap();
    }
}
