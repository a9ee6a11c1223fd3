//! The keeper against a model of a registry, on a paused clock.

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
enum Mood {
    #[default]
    Answers,
    /// Nobody is there.
    Away,
    /// Nothing is answered.
    Stuck,
    /// All is refused, for good as it says.
    Refuses,
}

#[derive(Default)]
struct Leases {
    mood: Mood,
    /// The leases that there are, and when they expire.
    live: HashMap<LeaseId, Instant>,
    granted: u64,
    /// When calls came.
    calls: Vec<Instant>,
    reconnects: usize,
}

#[derive(Clone, Default)]
struct Model(Arc<Mutex<Leases>>);

impl Model {
    async fn admit(&self) -> Result<(), ClientError> {
        let mood = {
            let mut leases = self.0.lock().unwrap();
            let now = Instant::now();
            leases.calls.push(now);
            if leases.mood == Mood::Answers {
                leases.live.retain(|_, expires| *expires > now);
            }
            leases.mood
        };
        match mood {
            Mood::Answers => Ok(()),
            Mood::Away => Err(Status::unavailable("away").into()),
            Mood::Refuses => Err(Status::permission_denied("no").into()),
            Mood::Stuck => pending().await,
        }
    }

    fn set(&self, mood: Mood) {
        self.0.lock().unwrap().mood = mood;
    }

    /// Every lease has a full ttl again, as after an outage.
    fn restart(&self) {
        let mut leases = self.0.lock().unwrap();
        leases.mood = Mood::Answers;
        leases.live.values_mut().for_each(|expires| *expires = Instant::now() + TTL);
    }

    fn expires(&self, lease: LeaseId) -> Option<Instant> {
        self.0.lock().unwrap().live.get(&lease).copied()
    }

    /// The pauses between calls since this was last asked.
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

    async fn revoke(&self, lease: LeaseId) -> Result<u64, ClientError> {
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
    stop: oneshot::Sender<RevokeReply>,
    task: JoinHandle<()>,
}

impl Guard {
    /// What happens within `time`.
    async fn event(&mut self, time: Duration) -> Option<LeaseEvent> {
        timeout(time, self.events.next()).await.ok().map(|event| event.expect("it is not stopped"))
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
async fn a_lease_is_kept_about_three_times_a_ttl() {
    let (model, mut guard) = start().await;
    assert_eq!(guard.event(TTL * 100).await, None);
    let pauses = model.pauses();
    assert!(pauses.len() >= 300, "{}", pauses.len());
    // Timers of tokio are exact to a millisecond.
    let turn = TTL / 3 * 8 / 10..=TTL / 3 + Duration::from_millis(2);
    assert!(pauses.iter().all(|pause| turn.contains(pause)), "{pauses:?}");
    assert_ne!(pauses[0], pauses[1], "they are drawn by chance");
    assert_eq!(model.reconnects(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_is_nothing() {
    for mood in [Mood::Away, Mood::Stuck, Mood::Refuses] {
        let (model, mut guard) = start().await;
        for _ in 0..100 {
            model.set(mood);
            // After a whole turn this leaves more than a quarter of the ttl: half of that for a try that is stuck, and
            // a tenth of the ttl for the wait after it.
            assert_eq!(guard.event(TTL * 2 / 5).await, None);
            model.set(Mood::Answers);
            assert_eq!(guard.event(TTL / 2).await, None);
        }
        assert_eq!(
            model.reconnects() > 0,
            mood == Mood::Stuck,
            "only a call without an answer needs another connection"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn tries_come_often_while_the_lease_may_be_saved_and_then_no_more_often_than_turns() {
    let (model, mut guard) = start().await;
    model.set(Mood::Away);
    assert_eq!(guard.event(TTL * 2).await, Some(LeaseEvent::Lost));
    let pauses = model.pauses();
    assert!(pauses[1..].iter().all(|pause| *pause <= TTL / 10 + Duration::from_millis(2)), "{pauses:?}");
    // Until what was planned before the loss is over.
    sleep(TTL / 10).await;
    model.pauses();
    sleep(TTL * 100).await;
    let pauses = model.pauses();
    assert!(pauses.len() < 1000, "{}", pauses.len());
    assert!(pauses.iter().all(|pause| *pause <= TTL / 3 + Duration::from_millis(2)), "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn loss_is_told_when_the_lease_may_have_expired_and_not_before() {
    for mood in [Mood::Away, Mood::Stuck, Mood::Refuses] {
        let (model, mut guard) = start().await;
        for _ in 0..20 {
            // At any point of a turn.
            assert_eq!(guard.event(TTL.mul_f64(fastrand::f64())).await, None);
            model.set(mood);
            let expires = model.expires(lease(1)).unwrap();
            assert_eq!(guard.event(TTL * 2).await, Some(LeaseEvent::Lost));
            let late = Instant::now().checked_duration_since(expires).expect("not before");
            assert!(late <= Duration::from_millis(2), "{late:?}");
            model.restart();
            // A try that is stuck is given up first.
            assert_eq!(guard.event(TTL).await, Some(LeaseEvent::Recovered));
        }
        assert_eq!(model.0.lock().unwrap().granted, 1, "nothing was gone");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_expired_meanwhile_is_replaced() {
    let (model, mut guard) = start().await;
    for number in 2..10 {
        model.set(Mood::Away);
        assert_eq!(guard.event(TTL * 2).await, Some(LeaseEvent::Lost));
        sleep(Duration::from_secs(1)).await;
        model.set(Mood::Answers);
        assert_eq!(guard.event(TTL).await, Some(LeaseEvent::Regranted(lease(number))));
        assert_eq!(guard.event(TTL * 3).await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_revoked_elsewhere_is_replaced_within_a_turn() {
    let (model, mut guard) = start().await;
    model.revoke(lease(1)).await.unwrap();
    assert_eq!(guard.event(TTL / 3 + Duration::from_millis(2)).await, Some(LeaseEvent::Regranted(lease(2))));
    assert_eq!(guard.event(TTL * 3).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_is_dropped_revokes_and_its_task_ends() {
    let (model, mut guard) = start().await;
    sleep(TTL * 5).await;
    drop(guard.stop);
    assert_eq!(guard.events.next().await, None);
    timeout(TTL, guard.task).await.unwrap().unwrap();
    assert_eq!(model.expires(lease(1)), None);
}

#[tokio::test(start_paused = true)]
async fn revoking_is_answered_even_out_of_a_try_that_is_stuck() {
    let (model, guard) = start().await;
    model.set(Mood::Stuck);
    sleep(TTL / 2).await;
    model.set(Mood::Answers);
    let (reply, answer) = oneshot::channel();
    guard.stop.send(reply).unwrap();
    assert_eq!(answer.await.unwrap().unwrap(), 5);
    timeout(TTL, guard.task).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_ttl_out_of_bounds_makes_no_busy_loop() {
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
        async fn revoke(&self, _: LeaseId) -> Result<u64, ClientError> {
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
