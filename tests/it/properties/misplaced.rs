//! The promises about leases and places are broken on purpose, and the checker says so of them and of no other.

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
    twisted::Twist,
    world::{World, run},
};

const D: SessionKey = SessionKey::new(0, 4);

/// No lease ends in this time.
const LONG: Duration = Duration::from_secs(3600);

/// Sessions come, move, and go under two leases. Observers of all sessions and of those under the first lease look on, from the
/// beginning and from a snapshot, and so does one without placements. What they are told is tampered with.
async fn history_with_leases(fixture: &impl Fixture, tamper: impl Fn(LeaseId) -> Tamper) -> Vec<Broken> {
    let mut world = World::new(fixture, &SHAPE).await;
    let (own, other) = (world.grant(LONG).await, world.grant(LONG).await);
    let tamper = tamper(own);
    let all = Filter { placements: true, ..Filter::default() };
    let by_lease = Filter { lease_ids: [own].into(), ..Filter::default() };
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
        // Each session leaves the lease that it is under.
        let lease = if session == A { other } else { own };
        world.create(&[session], Some(lease)).await;
        world.settle(0).await;
        poll_all(&mut world).await;
    }
    let only_from = CreateOptions { lease: Some(other), takeover: Takeover::OnlyFrom(None) };
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
fn nothing_is_broken_without_a_fault() {
    assert_eq!(tampered(|_| Tamper::Nothing), []);
}

#[test]
fn placed_is_broken_by_moves_that_never_come() {
    assert_eq!(tampered(Tamper::LoseMovesTo), [Promise::Placed]);
    assert_eq!(tampered(Tamper::LoseMovesFrom), [Promise::Placed]);
}

#[test]
fn placed_is_broken_by_events_that_tell_wrong_leases() {
    assert_eq!(tampered(|_| Tamper::ForgetPrevious), [Promise::Placed]);
    assert_eq!(tampered(|_| Tamper::ForgetLastLease), [Promise::Placed]);
}

#[test]
fn placed_is_broken_by_streams_without_placements_that_are_told_of_moves() {
    assert_eq!(tampered(|_| Tamper::AddMoves), [Promise::Placed]);
}

/// Says that sessions are under no lease.
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
fn placed_is_broken_by_snapshots_that_tell_wrong_leases() {
    assert_eq!(faulty(|| ReadsNoLeases), [Promise::Placed]);
    assert_eq!(faulty(|| LeavesOutBuckets), [Promise::Placed]);
}

/// Looks up each session as it was when it was first found.
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

/// Ignores from which leases sessions may be taken.
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

/// Takes no session from any lease.
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
        truth.create_with(sessions, CreateOptions { takeover: Takeover::OnlyFrom(options.lease), ..options }).await
    }
}

#[test]
fn placed_is_broken_by_lookups_and_takeovers_that_mistake_the_lease() {
    assert_eq!(faulty(LooksUpOldLeases::default), [Promise::Placed]);
    assert_eq!(faulty(|| TakesFromAnyLease), [Promise::Placed]);
    assert_eq!(faulty(|| TakesNothing), [Promise::Placed]);
}

#[test]
fn comparable_is_broken_by_places_that_lag_or_run_ahead() {
    for by in [-1, 1] {
        assert_eq!(tampered(|_| Tamper::ShiftPlaces(by)), [Promise::Comparable], "{by}");
        assert_eq!(tampered(|_| Tamper::ShiftLast(by)), [Promise::Comparable], "{by}");
    }
}

#[test]
fn comparable_is_broken_by_places_that_are_missing_or_not_asked_for() {
    assert_eq!(tampered(|_| Tamper::LosePlaces), [Promise::Comparable]);
    assert_eq!(tampered(|_| Tamper::AddPlaces), [Promise::Comparable]);
}

/// Answers with places that are so far off.
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
fn comparable_is_broken_by_answers_that_are_not_true_at_their_places() {
    assert_eq!(faulty(|| MisplacesAnswers::<0, 0>), []);
    assert_eq!(faulty(|| MisplacesAnswers::<-1, 0>), [Promise::Comparable]);
    assert_eq!(faulty(|| MisplacesAnswers::<1, 0>), [Promise::Comparable]);
    assert_eq!(faulty(|| MisplacesAnswers::<0, -1>), [Promise::Comparable]);
    assert_eq!(faulty(|| MisplacesAnswers::<0, 1>), [Promise::Comparable]);
}
