//! The client's mirror against the real server.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use sessiond::{
    client::{Client, ClientError, Mirror, MirrorChange, MirrorChanges, MirrorHolder, MirrorOptions, MirrorUpdate},
    session::{AuthKeyId, DestroyReason, LeaseId, SessionId, SessionKey},
};
use tokio::time::sleep;

use crate::{
    fake::{Fake, duration, nowhere, soon},
    lease_guard::{Network, Registry},
};

const LONG: Duration = Duration::from_secs(3600);

fn key(id: i64) -> SessionKey {
    SessionKey::new(7, id)
}

fn keys(ids: std::ops::Range<i64>) -> Vec<SessionKey> {
    ids.map(key).collect()
}

async fn grant(client: &Client, owner: &str) -> LeaseId {
    soon(client.grant_lease(LONG, owner)).await.unwrap().id
}

async fn synced(client: &Client, options: MirrorOptions) -> Mirror {
    let mirror = client.mirror(options);
    soon(mirror.synced()).await.unwrap();
    mirror
}

fn held(mirror: &Mirror) -> BTreeMap<SessionKey, Option<LeaseId>> {
    let held: BTreeMap<_, _> = mirror.iter().map(|found| (found.session, found.lease)).collect();
    assert_eq!(held.len(), mirror.len());
    assert_eq!(mirror.is_empty(), held.is_empty());
    for (session, lease) in &held {
        assert!(mirror.has(*session));
        assert_eq!(mirror.holder_of(*session).map(|holder| holder.lease), *lease);
    }
    held
}

fn owner_of(mirror: &Mirror, session: SessionKey) -> Option<String> {
    mirror.holder_of(session).and_then(|holder| holder.owner).map(|owner| owner.to_string())
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    crate::server::eventually(what, &mut is_so).await;
}

#[test]
fn mirrors_can_be_shared() {
    fn is_shared<T: Send + Sync + 'static>() {}
    is_shared::<Mirror>();
    is_shared::<MirrorHolder>();
    is_shared::<MirrorChanges>();
}

#[tokio::test]
async fn a_mirror_holds_what_the_registry_holds() {
    let registry = Registry::start().await;
    let client = registry.client();
    let (a, b) = (grant(&client, "10.0.0.1:443").await, grant(&client, "10.0.0.2:443").await);
    client.batch_create_under(&keys(0..100), a).await.unwrap();
    client.batch_create(&keys(100..110)).await.unwrap();
    let mirror = client.mirror(MirrorOptions::default());
    assert!(!mirror.has(key(1)), "the mirror is empty before its first snapshot");
    soon(mirror.synced()).await.unwrap();
    assert_eq!(mirror.staleness(), Duration::ZERO);
    let mut expected: BTreeMap<_, _> = keys(0..100).into_iter().map(|session| (session, Some(a))).collect();
    expected.extend(keys(100..110).into_iter().map(|session| (session, None)));
    assert_eq!(held(&mirror), expected);
    assert_eq!(owner_of(&mirror, key(1)).as_deref(), Some("10.0.0.1:443"));
    assert!(!mirror.has(SessionKey::new(8, 1)) && mirror.holder_of(key(105)).is_none());

    // Each write is read as soon as its place is reached.
    let moved = client.with_place().batch_take(&keys(0..50), b, Some(a)).await.unwrap();
    mirror.wait_until(&moved.places).await.unwrap();
    assert_eq!(owner_of(&mirror, key(1)).as_deref(), Some("10.0.0.2:443"));
    let destroyed = client.with_place().destroy(key(0)).await.unwrap();
    mirror.wait_until(&destroyed.places).await.unwrap();
    let taken = client.with_place().take(key(105), a, None).await.unwrap();
    mirror.wait_until(&taken.places).await.unwrap();
    let created = client.with_place().create_under(key(500), b).await.unwrap();
    assert!(created.value && destroyed.value);
    mirror.wait_until(&created.places).await.unwrap();
    expected.extend(keys(1..50).into_iter().map(|session| (session, Some(b))));
    expected.extend([(key(105), Some(a)), (key(500), Some(b))]);
    expected.remove(&key(0));
    assert_eq!(held(&mirror), expected);

    // A change that changes nothing has a place, too.
    let nothing = client.with_place().create(key(500)).await.unwrap();
    assert!(!nothing.value);
    soon(mirror.wait_until(&nothing.places)).await.unwrap();
}

#[tokio::test]
async fn filters_choose_what_a_mirror_holds() {
    let registry = Registry::start().await;
    let client = registry.client();
    let (a, b) = (grant(&client, "a").await, grant(&client, "b").await);
    client.batch_create_under(&keys(0..10), a).await.unwrap();
    client.batch_create_under(&keys(10..20), b).await.unwrap();
    client.create_under(SessionKey::new(8, 1), b).await.unwrap();
    let by_lease = synced(&client, MirrorOptions::default().lease_ids([a])).await;
    let by_key = synced(&client, MirrorOptions::default().auth_key_ids([AuthKeyId(8)])).await;
    let by_session = synced(&client, MirrorOptions::default().session_ids([SessionId(1)])).await;
    assert_eq!((by_lease.len(), by_key.len(), by_session.len()), (10, 1, 2));
    client.take(key(1), b, Some(a)).await.unwrap();
    client.take(key(15), a, Some(b)).await.unwrap();
    client.destroy(SessionKey::new(8, 1)).await.unwrap();
    until("the mirrors follow", || {
        !by_lease.has(key(1)) && by_lease.has(key(15)) && by_key.is_empty() && by_session.len() == 1
    })
    .await;
    assert_eq!(held(&by_lease).len(), 10);
    assert_eq!(owner_of(&by_session, key(1)).as_deref(), Some("b"));
}

/// Applies changes to a copy until it equals the mirror, and returns how many changes there were.
async fn follow(
    changes: &mut MirrorChanges,
    copy: &mut BTreeMap<SessionKey, Option<LeaseId>>,
    mirror: &Mirror,
) -> usize {
    let mut count = 0;
    soon(async {
        while *copy != held(mirror) {
            match changes.next().await.unwrap() {
                MirrorUpdate::Changed(changes) => {
                    count += changes.len();
                    for MirrorChange { session, exists, lease, .. } in changes.iter().copied() {
                        if exists {
                            copy.insert(session, lease)
                        } else {
                            copy.remove(&session)
                        };
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
    count
}

#[tokio::test]
async fn a_mirror_of_a_registry_that_lost_its_sessions_reports_only_the_differences() {
    let registry = Registry::start().await;
    let client = registry.client();
    let mirror = client.mirror(MirrorOptions::default());
    let (mut changes, mut copy) = (mirror.changes(), BTreeMap::new());
    soon(mirror.synced()).await.unwrap();
    let place = client.with_place().batch_create(&keys(0..1000)).await.unwrap().places;
    mirror.wait_until(&place).await.unwrap();
    assert_eq!(follow(&mut changes, &mut copy, &mirror).await, 1000);

    let addr = registry.stop().await;
    until("the mirror notices", || mirror.staleness() > Duration::ZERO).await;
    assert_eq!(mirror.len(), 1000, "the old contents stay readable");
    let far = sessiond::client::Place { partition: place[0].partition, position: place[0].position + 1_000_000 };
    let lost = mirror.wait_until(std::slice::from_ref(&far));
    let restarted = async {
        let registry = Registry::listen(addr).await;
        let client = registry.client();
        client.batch_create(&keys(990..1010)).await.unwrap();
        registry
    };
    let (lost, registry) = tokio::join!(soon(lost), restarted);
    assert!(matches!(lost, Err(ClientError::RegistryLost | ClientError::Timeout { .. })), "{lost:?}");
    until("the mirror follows the new registry", || mirror.len() == 20 && mirror.has(key(1009))).await;
    let told = follow(&mut changes, &mut copy, &mirror).await;
    assert!(told <= 1000, "{told} changes");
    let place = registry.client().with_place().destroy(key(1000)).await.unwrap().places;
    mirror.wait_until(&place).await.unwrap();
    assert!(!mirror.has(key(1000)));
    drop(mirror);
    soon(async { while changes.next().await.is_some() {} }).await;
}

#[tokio::test]
async fn a_mirror_that_is_cut_off_says_how_stale_it_is_and_resumes() {
    let registry = Registry::start().await;
    let network = Network::before(&registry).await;
    let client = registry.client();
    let mirror = synced(&network.client(), MirrorOptions::default().heartbeat(Duration::from_millis(100))).await;
    let mut changes = mirror.changes();
    network.cut();
    let began = Instant::now();
    client.batch_create(&keys(0..10)).await.unwrap();
    until("the mirror notices", || mirror.staleness() >= Duration::from_millis(300)).await;
    assert!(mirror.staleness() <= began.elapsed() + Duration::from_millis(500));
    assert!(mirror.is_empty());
    network.mend();
    until("the mirror resumes", || mirror.len() == 10 && mirror.staleness() == Duration::ZERO).await;
    let mut copy = BTreeMap::new();
    assert_eq!(follow(&mut changes, &mut copy, &mirror).await, 10, "it resumed without a snapshot");
}

#[tokio::test]
async fn a_slow_reader_of_changes_gets_a_resync() {
    let registry = Registry::start().await;
    let client = registry.client();
    let mirror = synced(&client, MirrorOptions::default()).await;
    let mut changes = mirror.changes();
    let mut place = Vec::new();
    for round in 0..100 {
        let one = client.with_place().create(key(round)).await.unwrap();
        mirror.wait_until(&one.places).await.unwrap();
        place = one.places;
    }
    assert!(!place.is_empty());
    assert_eq!(soon(changes.next()).await, Some(MirrorUpdate::Resync));
    client.create(key(200)).await.unwrap();
    let MirrorUpdate::Changed(after) = soon(changes.next()).await.unwrap() else { panic!("only one change follows") };
    assert_eq!(*after, [MirrorChange { session: key(200), exists: true, lease: None, reason: None }]);
}

#[tokio::test]
async fn a_mirror_asks_for_a_heartbeat_every_5_s() {
    let mut fake = Fake::start().await;
    let client = Client::connect_lazy(&fake.addr).unwrap();
    let (default, other) = (Duration::from_secs(5), Duration::from_millis(300));
    for (options, heartbeat) in
        [(MirrorOptions::default(), default), (MirrorOptions::default().heartbeat(other), other)]
    {
        let mirror = client.mirror(options);
        let stream = soon(fake.stream()).await;
        assert_eq!(stream.request.heartbeat, Some(duration(heartbeat)));
        drop(mirror);
    }
}

#[tokio::test]
async fn changes_say_why_a_session_was_destroyed() {
    let registry = Registry::start().await;
    let client = registry.client();
    let lease = grant(&client, "a").await;
    client.batch_create_under(&keys(0..3), lease).await.unwrap();
    let mirror = synced(&client, MirrorOptions::default()).await;
    let mut changes = mirror.changes();
    client.destroy(key(0)).await.unwrap();
    client.destroy_under(key(1), lease).await.unwrap();
    client.revoke_lease(lease).await.unwrap();
    let mut reasons = BTreeMap::new();
    while reasons.len() < 3 {
        let MirrorUpdate::Changed(changes) = soon(changes.next()).await.unwrap() else {
            panic!("no change is left out")
        };
        reasons.extend(changes.iter().map(|change| (change.session, change.reason)));
    }
    let expected = [DestroyReason::Requested, DestroyReason::Released, DestroyReason::LeaseRevoked].map(Some);
    assert_eq!(reasons.into_values().collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn waiting_for_a_place_ends_with_the_clients_timeout() {
    let unreachable = Client::builder(&nowhere().await).unwrap().timeout(Duration::from_millis(200));
    let mirror = unreachable.connect_lazy().unwrap().mirror(MirrorOptions::default());
    let place = sessiond::client::Place { partition: 0, position: 1 };
    let error = soon(mirror.wait_until(&[place])).await.unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    assert!(mirror.staleness() >= Duration::from_millis(200));
    sleep(Duration::ZERO).await;
}
