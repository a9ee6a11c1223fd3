//! Breaks the promises about leases and places on purpose, and expects the checker to report those promises and no
//! others.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use async_trait::async_trait;
use sessiond::{
    session::{LeaseId, SessionKey},
    storage::{
        Answers, BucketRun, CreateOptions, Creation, LeaseBuckets, LogError, LogPoint, Lookup, Places, RegistryId,
        SessionStorage, StorageError, Takeover,
    },
    subject::{Filter, Start},
};

use super::{
    Fixture, Memory,
    broken::{A, B, C, Faulty, SHAPE, promises},
    checker::{Broken, Promise},
    faulty::Tamper,
    world::{World, run},
};
use crate::twisted::Twist;

const D: SessionKey = SessionKey::new(0, 4);

/// No lease expires within this time.
const LONG: Duration = Duration::from_secs(3600);

/// Creates, moves and destroys sessions under two leases. Observers of all sessions, of the first lease's sessions, and
/// without placements watch from the start and from a snapshot. `tamper` changes what they receive.
async fn history_with_leases(fixture: &impl Fixture, tamper: impl Fn(LeaseId) -> Tamper) -> Vec<Broken> {
    let mut world = World::new(fixture, &SHAPE).await;
    let (own, other) = (world.grant(LONG).await, world.grant(LONG).await);
    let tamper = tamper(own);
    let all = Filter::default().placements(true);
    let by_lease = Filter::default().lease_ids([own]);
    let filters = [&all, &by_lease, &Filter::default()];
    for filter in filters {
        world.observe(0, Start::Now, filter, tamper).await;
    }
    world.create(&[A, C], Some(own)).await;
    world.create(&[B], Some(other)).await;
    world.create(&[D], None).await;
    for filter in filters {
        world.observe(0, Start::Snapshot, filter, tamper).await;
    }
    world.settle(0).await;
    poll_all(&mut world).await;
    for session in [A, B] {
        // Each session leaves its current lease.
        let lease = if session == A { other } else { own };
        world.create(&[session], Some(lease)).await;
        world.settle(0).await;
        poll_all(&mut world).await;
    }
    let only_from = CreateOptions::from(Some(other)).takeover(Takeover::OnlyFrom(None));
    world.create_with(&[B, D], only_from).await;
    world.destroy(&[B, C], Some(own)).await;
    world.settle(0).await;
    poll_all(&mut world).await;
    world.finish().await
}

async fn poll_all(world: &mut World) {
    for who in 0..6 {
        world.poll(who, 9).await;
    }
}

fn tampered(tamper: impl Fn(LeaseId) -> Tamper) -> Vec<Promise> {
    promises(&run(true, history_with_leases(&Memory, tamper)))
}

fn faulty<T: Twist>(twist: fn() -> T) -> Vec<Promise> {
    promises(&run(true, history_with_leases(&Faulty(twist), |_| Tamper::Nothing)))
}

#[test]
fn a_registry_without_faults_keeps_every_promise() {
    assert_eq!(tampered(|_| Tamper::Nothing), []);
}

#[test]
fn lost_moves_break_placed() {
    assert_eq!(tampered(Tamper::LoseMovesTo), [Promise::Placed]);
    assert_eq!(tampered(Tamper::LoseMovesFrom), [Promise::Placed]);
}

#[test]
fn events_with_wrong_leases_break_placed() {
    assert_eq!(tampered(|_| Tamper::ForgetPrevious), [Promise::Placed]);
    assert_eq!(tampered(|_| Tamper::ForgetLastLease), [Promise::Placed]);
}

#[test]
fn moves_on_streams_without_placements_break_placed() {
    assert_eq!(tampered(|_| Tamper::AddMoves), [Promise::Placed]);
}

/// Reports sessions as under no lease.
#[derive(Debug)]
struct ReadsNoLeases;

#[async_trait]
impl Twist for ReadsNoLeases {
    async fn read_buckets(
        &self,
        truth: &dyn SessionStorage,
        registry_id: RegistryId,
        known: &[LogPoint],
        buckets: &[u32],
        limit: usize,
        with_leases: bool,
    ) -> Result<BucketRun, LogError> {
        let mut run = truth.read_buckets(registry_id, known, buckets, limit, with_leases).await?;
        run.leases.iter_mut().for_each(|lease| *lease = None);
        Ok(run)
    }
}

/// Leaves out a bucket that has sessions under a lease.
#[derive(Debug)]
struct LeavesOutBuckets;

#[async_trait]
impl Twist for LeavesOutBuckets {
    async fn buckets_under(
        &self,
        truth: &dyn SessionStorage,
        registry_id: RegistryId,
        known: &[LogPoint],
        leases: &[LeaseId],
    ) -> Result<LeaseBuckets, LogError> {
        let mut under = truth.buckets_under(registry_id, known, leases).await?;
        under.buckets.pop();
        Ok(under)
    }
}

#[test]
fn snapshots_with_wrong_leases_break_placed() {
    assert_eq!(faulty(|| ReadsNoLeases), [Promise::Placed]);
    assert_eq!(faulty(|| LeavesOutBuckets), [Promise::Placed]);
}

/// Looks up each session as it was when first found.
#[derive(Debug, Default)]
struct LooksUpOldLeases(Mutex<HashMap<SessionKey, Lookup>>);

#[async_trait]
impl Twist for LooksUpOldLeases {
    async fn lookup(&self, truth: &dyn SessionStorage, sessions: &[SessionKey]) -> Result<Vec<Lookup>, StorageError> {
        let found = truth.lookup(sessions).await?;
        let mut first = self.0.lock().unwrap();
        let old = |(session, found): (&SessionKey, Lookup)| match found.exists {
            true => *first.entry(*session).or_insert(found),
            false => found,
        };
        Ok(sessions.iter().zip(found).map(old).collect())
    }
}

/// Takes sessions from any lease, whatever the options say.
#[derive(Debug)]
struct TakesFromAnyLease;

#[async_trait]
impl Twist for TakesFromAnyLease {
    async fn create_with(
        &self,
        truth: &dyn SessionStorage,
        sessions: &[SessionKey],
        options: CreateOptions,
    ) -> Result<Answers<Creation>, StorageError> {
        truth.create_with(sessions, options.lease.into()).await
    }
}

/// Never takes a session from another lease.
#[derive(Debug)]
struct TakesNothing;

#[async_trait]
impl Twist for TakesNothing {
    async fn create_with(
        &self,
        truth: &dyn SessionStorage,
        sessions: &[SessionKey],
        options: CreateOptions,
    ) -> Result<Answers<Creation>, StorageError> {
        truth.create_with(sessions, options.takeover(Takeover::OnlyFrom(options.lease))).await
    }
}

#[test]
fn lookups_and_takeovers_of_the_wrong_lease_break_placed() {
    assert_eq!(faulty(LooksUpOldLeases::default), [Promise::Placed]);
    assert_eq!(faulty(|| TakesFromAnyLease), [Promise::Placed]);
    assert_eq!(faulty(|| TakesNothing), [Promise::Placed]);
}

#[test]
fn shifted_places_break_comparable() {
    for by in [-1, 1] {
        assert_eq!(tampered(|_| Tamper::ShiftPlaces(by)), [Promise::Comparable], "{by}");
        assert_eq!(tampered(|_| Tamper::ShiftLast(by)), [Promise::Comparable], "{by}");
    }
}

#[test]
fn missing_or_unrequested_places_break_comparable() {
    assert_eq!(tampered(|_| Tamper::LosePlaces), [Promise::Comparable]);
    assert_eq!(tampered(|_| Tamper::AddPlaces), [Promise::Comparable]);
}

/// Shifts the places in answers.
#[derive(Debug)]
struct MisplacesAnswers<const CREATED: i64, const DESTROYED: i64>;

fn shifted(places: &Places, by: i64) -> Places {
    let mut shifted = Places::default();
    for place in places.iter() {
        let mut place = *place;
        place.position.0 = place.position.0.saturating_add_signed(by);
        shifted.add(place);
    }
    shifted
}

#[async_trait]
impl<const CREATED: i64, const DESTROYED: i64> Twist for MisplacesAnswers<CREATED, DESTROYED> {
    async fn create_with(
        &self,
        truth: &dyn SessionStorage,
        sessions: &[SessionKey],
        options: CreateOptions,
    ) -> Result<Answers<Creation>, StorageError> {
        let mut answers = truth.create_with(sessions, options).await?;
        answers.places = shifted(&answers.places, CREATED);
        Ok(answers)
    }

    async fn destroy_with(
        &self,
        truth: &dyn SessionStorage,
        sessions: &[SessionKey],
        lease: Option<LeaseId>,
    ) -> Result<Answers<bool>, StorageError> {
        let mut answers = truth.destroy_with(sessions, lease).await?;
        answers.places = shifted(&answers.places, DESTROYED);
        Ok(answers)
    }
}

#[test]
fn answers_with_wrong_places_break_comparable() {
    assert_eq!(faulty(|| MisplacesAnswers::<0, 0>), []);
    assert_eq!(faulty(|| MisplacesAnswers::<-1, 0>), [Promise::Comparable]);
    assert_eq!(faulty(|| MisplacesAnswers::<1, 0>), [Promise::Comparable]);
    assert_eq!(faulty(|| MisplacesAnswers::<0, -1>), [Promise::Comparable]);
    assert_eq!(faulty(|| MisplacesAnswers::<0, 1>), [Promise::Comparable]);
}
