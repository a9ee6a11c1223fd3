//! The storage of `examples/custom_storage` passes the conformance suite, and the server serves it: calls, streams,
//! leases that expire, probes, metrics and resumption after a restart.

#[path = "../../examples/custom_storage/storage/mod.rs"]
mod storage;

use std::{path::Path, sync::Arc, time::Duration};

use sessiond::{
    proto::{DestroyReason, LookupSessionRequest, SessionEventType},
    storage::{
        SessionStorage, StorageOptions,
        conformance::{StorageFactory, cases},
    },
};
use tokio::task::JoinSet;

use self::storage::RedbStorage;
use crate::{
    fake::soon,
    leases::{create_under, grant},
    observed::{Observed, keys},
    program::get,
    redis::ROOMY,
    server::{Running, config},
    sessions::{create, has},
};

async fn open(path: &Path, options: StorageOptions) -> Arc<dyn SessionStorage> {
    Arc::new(RedbStorage::open(path, options).await.unwrap())
}

/// Creates registries, each in its own file.
struct Factory(tempfile::TempDir);

#[async_trait::async_trait]
impl StorageFactory for Factory {
    async fn open(&self, options: StorageOptions) -> Vec<Arc<dyn SessionStorage>> {
        vec![open(&self.0.path().join(format!("{:x}", fastrand::u64(..))), options).await]
    }

    fn slack(&self) -> Duration {
        Duration::from_secs(60)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_custom_storage_passes_the_conformance_suite() {
    let factory = Arc::new(Factory(tempfile::tempdir().unwrap()));
    let mut running = JoinSet::new();
    for case in cases() {
        let factory = Arc::clone(&factory);
        running.spawn(async move { case.run(&*factory).await });
    }
    let found: Vec<_> = running.join_all().await.into_iter().filter_map(Result::err).collect();
    assert!(found.is_empty(), "{found:#?}");
}

async fn serve(path: &Path, options: StorageOptions) -> Running {
    Running::with(config().storage(open(path, options).await)).await
}

#[tokio::test]
async fn a_server_serves_the_custom_storage_and_keeps_its_sessions_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry.redb");
    let options = ROOMY.outage_grace(Duration::from_secs(1));
    let server = serve(&path, options).await;
    let (client, leases) = (server.sessions(), server.leases());
    let mut observed = Observed::snapshot(&client).await;
    assert!(observed.synced().await.is_empty());

    let lease = grant(&leases, Duration::from_secs(2)).await;
    assert!(create(&client, 0, 1).await);
    assert!(create_under(&client, lease, 2).await);
    let request = LookupSessionRequest { session_id: Some(2), ..Default::default() };
    let found = soon(client.clone().lookup_session(request)).await.unwrap().into_inner();
    assert_eq!((found.exists, found.lease.map(|lease| lease.lease_id)), (true, Some(lease)));
    let ids =
        |events: Vec<sessiond::proto::SessionEvent>| events.iter().map(|event| event.session_id).collect::<Vec<_>>();
    assert_eq!(ids(observed.events(2).await), [1, 2]);

    // Nobody keeps the lease alive.
    let expired = observed.events(1).await.remove(0);
    assert_eq!((expired.session_id, expired.r#type()), (2, SessionEventType::Destroyed));
    assert_eq!(expired.reason(), DestroyReason::LeaseExpired);
    assert!(has(&client, 0, 1).await && !has(&client, 0, 2).await);
    assert_eq!((get(server.admin, "/ready").await.status, get(server.admin, "/writable").await.status), (200, 200));
    assert!(get(server.admin, "/metrics").await.body.contains("\nsessiond_sessions 1\n"));

    // The observer resumes where the drain ended its stream.
    let cursor = observed.cursor.clone();
    drop((observed, client, leases));
    server.stopped().await;
    let server = serve(&path, options).await;
    let client = server.sessions();
    let mut observed = Observed::after(&client, &cursor).await;
    assert!(has(&client, 0, 1).await && !has(&client, 0, 2).await);
    assert!(create(&client, 0, 3).await);
    assert_eq!(ids(observed.events(1).await), [3]);
    assert_eq!(keys(&Observed::snapshot(&client).await.synced().await), [(0, 1), (0, 3)].into());
}
