//! Many observers over real sockets that take a snapshot at the same time and share what is read.

use std::{collections::BTreeSet, time::Duration};

use sessiond::{
    proto::{SubscribeRequest, subscribe_response::Body},
    session::SessionKey,
};
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tonic::transport::Endpoint;

use crate::{
    fake::soon,
    observed::{Observed, apply, from_snapshot, keys},
    program::Program,
    raw::{Raw, SERVICE, framed, grpc},
    server::Sessions,
    sessions::{batch_create, batch_destroy, create},
};

const SESSIONS: i64 = 40_000;
const OBSERVERS: usize = 20;
const STUCK: usize = 5;

/// Far longer than the snapshots take. It only ends tests that hang.
const DEADLINE: Duration = Duration::from_secs(180);

/// The session that is created last.
const LAST: i64 = -1;

#[tokio::test]
async fn observers_that_share_a_snapshot_all_hold_what_the_registry_holds() {
    let program = Program::start(&["--workers", "2"]).await;
    let writer = program.sessions();
    let all: Vec<i64> = (0..SESSIONS).collect();
    for some in all.chunks(10_000) {
        batch_create(&writer, some).await;
    }

    // They have begun a snapshot and never read.
    let mut stuck = Raw::connect(program.addr).await;
    for _ in 0..STUCK {
        stuck.hold(grpc(&format!("{SERVICE}/Subscribe")), framed(&from_snapshot())).await;
    }
    stuck.hang();

    // Destroys the sessions of one half bit by bit, and creates others.
    let (stop, stopped) = watch::channel(());
    let changes = tokio::spawn({
        let writer = writer.clone();
        async move {
            let mut held: BTreeSet<i64> = (0..SESSIONS).collect();
            for n in (0..SESSIONS / 2).step_by(20).cycle() {
                if stopped.has_changed().is_err() {
                    break;
                }
                let (old, new) = (n..n + 20, n + SESSIONS..n + SESSIONS + 20);
                let (created, destroyed) = (new.clone().collect::<Vec<_>>(), old.clone().collect::<Vec<_>>());
                if held.contains(&n) {
                    batch_create(&writer, &created).await;
                    batch_destroy(&writer, &destroyed).await;
                    held.extend(new);
                    held.retain(|id| !old.contains(id));
                } else {
                    batch_create(&writer, &destroyed).await;
                    batch_destroy(&writer, &created).await;
                    held.extend(old);
                    held.retain(|id| !new.contains(id));
                }
            }
            held
        }
    });

    // All are in their snapshots when the first one reads on.
    let (begin, begun) = watch::channel(false);
    let (synced, mut count) = watch::channel(0);
    let mut observers = JoinSet::new();
    for n in 0..OBSERVERS {
        // The small windows keep the server from sending the whole snapshot before anyone reads it.
        let endpoint = Endpoint::from_shared(format!("http://{}", program.addr)).unwrap();
        let client = Sessions::new(endpoint.initial_stream_window_size(16_384).connect_lazy());
        let synced = synced.clone();
        let request = SubscribeRequest { placements: n % 4 == 3, ..from_snapshot() };
        let mut observer = Observed::start(&client, request).await;
        let mut begun = begun.clone();
        observers.spawn(async move {
            begun.wait_for(|has| *has).await.unwrap();
            let mut held = observer.synced().await;
            synced.send_modify(|count| *count += 1);
            while !held.contains_key(&SessionKey::new(0, LAST)) {
                match observer.next().await {
                    Body::Events(body) => apply(&mut held, &body.events),
                    Body::Heartbeat(_) => {}
                    other => panic!("{other:?}"),
                }
            }
            held
        });
    }
    begin.send_replace(true);
    timeout(DEADLINE, count.wait_for(|count| *count == OBSERVERS)).await.unwrap().unwrap();
    drop(stop);
    let mut truth = soon(changes).await.unwrap();
    create(&writer, 0, LAST).await;
    truth.insert(LAST);
    let truth: BTreeSet<_> = truth.into_iter().map(|id| (0, id)).collect();
    while let Some(held) = timeout(DEADLINE, observers.join_next()).await.unwrap() {
        assert!(keys(&held.unwrap()) == truth, "an observer holds other sessions than the registry");
    }
    let read = program.metric("sessiond_snapshot_runs_total{source=\"read\"}").await;
    let shared = program.metric("sessiond_snapshot_runs_total{source=\"shared\"}").await;
    println!("{read} runs were read, and {shared} shared");
    assert!(shared > read, "{read} runs were read, and only {shared} shared");
    drop(stuck);
    program.metric_comes_to("sessiond_observers", 0).await;
}
