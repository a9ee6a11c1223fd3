//! A Redis that answers but refuses changes: it is read-only, full, short of replicas, or cannot save.

use std::{fs, time::Duration};

use redis::cmd;
use sessiond::{
    storage::{RefusalCause, SessionStorage, StorageError, Writability},
    subject::Start,
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    ROOMY,
    cluster::{MASTERS, NODE_TIMEOUT, RedisCluster},
    open,
    replica::{Replica, create, eventually, existing_of, keys, run_all},
    server::{RedisServer, ServerKind, free_port, is_installed, on_each_server},
};

const PARAMETERS: &str = "timeout_ms=300&buckets=64";

/// A storage notices within this time, without a call, whether it can be changed.
const NOTICE_TIME: Duration = Duration::from_secs(10);

/// Why Redis refuses changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Trouble {
    ReadOnly,
    OutOfMemory,
    TooFewReplicas,
    NotPersisting,
}

impl Trouble {
    pub(super) const ALL: [Self; 4] = [Self::ReadOnly, Self::OutOfMemory, Self::TooFewReplicas, Self::NotPersisting];

    pub(super) fn cause(self) -> RefusalCause {
        match self {
            Self::ReadOnly => RefusalCause::ReadOnly,
            Self::OutOfMemory => RefusalCause::OutOfMemory,
            Self::TooFewReplicas => RefusalCause::TooFewReplicas,
            Self::NotPersisting => RefusalCause::NotPersisting,
        }
    }

    pub(super) async fn begin(self, server: &RedisServer) {
        match self {
            // Redis becomes a replica of a master that does not exist, and so keeps its data.
            Self::ReadOnly => server.ask(cmd("REPLICAOF").arg("127.0.0.1").arg(free_port())).unwrap(),
            Self::OutOfMemory => server.set("maxmemory", "1"),
            Self::TooFewReplicas => server.set("min-replicas-to-write", "1"),
            Self::NotPersisting => {
                server.set("save", "3600 1000000");
                // A file cannot replace a folder, not even for root.
                fs::create_dir(server.folder().join("dump.rdb")).unwrap();
                save(server, "err").await;
            }
        }
    }

    pub(super) async fn end(self, server: &RedisServer) {
        match self {
            Self::ReadOnly => server.ask(cmd("REPLICAOF").arg("NO").arg("ONE")).unwrap(),
            Self::OutOfMemory => server.set("maxmemory", "0"),
            Self::TooFewReplicas => server.set("min-replicas-to-write", "0"),
            Self::NotPersisting => {
                fs::remove_dir(server.folder().join("dump.rdb")).unwrap();
                save(server, "ok").await;
            }
        }
    }
}

/// Saves in the background, and waits until the save ends with `status`.
async fn save(server: &RedisServer, status: &str) {
    let () = server.ask(&cmd("BGSAVE")).unwrap();
    eventually(|| async {
        let is_saving = server.info("persistence", "rdb_bgsave_in_progress").as_deref() == Some("1");
        let last = server.info("persistence", "rdb_last_bgsave_status");
        (!is_saving && last.as_deref() == Some(status)).then_some(())
    })
    .await;
}

/// Waits until a storage knows, without a call, that it can be changed or why it cannot.
pub(super) async fn writability_becomes(storage: &dyn SessionStorage, cause: Option<RefusalCause>) {
    let mut last = Writability::Writable;
    let polling = async {
        loop {
            last = storage.writability();
            if last.refusal().map(|refusal| refusal.cause) == cause {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let is_noticed = timeout(NOTICE_TIME, polling).await.is_ok();
    assert!(is_noticed, "after {NOTICE_TIME:?}: expected {cause:?}, found {last:?}");
}

/// Asserts that a call was refused for this cause.
pub(super) fn assert_refused<T: std::fmt::Debug>(outcome: Result<T, StorageError>, cause: RefusalCause) {
    match outcome {
        Err(StorageError::Refused(refusal)) if refusal.cause == cause => {
            assert!(!refusal.detail.is_empty() && !refusal.detail.contains('\n'), "{refusal:?}");
        }
        outcome => panic!("expected {cause:?}, found {outcome:?}"),
    }
}

on_each_server! {
    [#[tokio::test]] refused_changes_name_their_cause_and_reads_continue;
    [#[tokio::test]] a_replica_that_starts_while_changes_are_refused_can_be_read;
    [#[tokio::test]] becoming_read_only_fails_no_read_of_the_log;
}

async fn refused_changes_name_their_cause_and_reads_continue(kind: ServerKind) {
    run_all(Trouble::ALL.map(|trouble| (format!("{trouble:?}"), check_refusal(kind, trouble)))).await;
}

async fn check_refusal(kind: ServerKind, trouble: Trouble) {
    let server = kind.start(&[]);
    let url = server.url(PARAMETERS);
    let (a, b) = (Replica::start(&url).await, open(&url, ROOMY).await);
    let lease = b.grant_lease(Duration::from_secs(600), "gateway").await.unwrap();
    b.create(&keys(50..60), Some(lease)).await.unwrap();
    create(&*b, &keys(0..50)).await;
    let mut held = a.watch(Start::Snapshot).await;
    held.converges_to(&keys(0..60)).await;
    writability_becomes(&*a.storage, None).await;

    let cause = trouble.cause();
    trouble.begin(&server).await;
    // Calls name the cause even before the storage has noticed it.
    assert_refused(b.create(&keys(100..110), None).await, cause);
    assert_refused(b.create(&keys(100..110), Some(lease)).await, cause);
    assert_refused(b.grant_lease(Duration::from_secs(60), "").await, cause);
    writability_becomes(&*a.storage, Some(cause)).await;
    assert_refused(a.storage.create(&keys(100..110), None).await, cause);
    match a.storage.keep_lease_alive(lease).await {
        Ok(_) => {}
        // Keep-alives need no memory, so a full Redis must not refuse them.
        outcome if trouble != Trouble::OutOfMemory => assert_refused(outcome, cause),
        outcome => panic!("{outcome:?}"),
    }
    // Reads and streams continue.
    assert_eq!(existing_of(keys(0..200), &a).await, keys(0..60));
    a.watch(Start::Snapshot).await.converges_to(&keys(0..60)).await;
    let cursor = held.observer.cursor().unwrap();
    assert_eq!(a.watch(Start::After(cursor)).await.resets, []);

    trouble.end(&server).await;
    writability_becomes(&*a.storage, None).await;
    a.storage.create(&keys(100..110), None).await.unwrap();
    b.create(&keys(110..120), Some(lease)).await.unwrap();
    held.converges_to(&[keys(0..60), keys(100..120)].concat()).await;
    assert_eq!(held.resets, [], "nothing was lost");
}

async fn a_replica_that_starts_while_changes_are_refused_can_be_read(kind: ServerKind) {
    run_all(Trouble::ALL.map(|trouble| (format!("{trouble:?}"), starts_while_refused(kind, trouble)))).await;
}

async fn starts_while_refused(kind: ServerKind, trouble: Trouble) {
    let server = kind.start(&[]);
    let url = server.url(PARAMETERS);
    create(&*open(&url, ROOMY).await, &keys(0..50)).await;
    trouble.begin(&server).await;
    let late = Replica::start(&url).await;
    assert_eq!(existing_of(keys(0..100), &late).await, keys(0..50), "{trouble:?}");
    let mut held = late.watch(Start::Snapshot).await;
    held.converges_to(&keys(0..50)).await;
    writability_becomes(&*late.storage, Some(trouble.cause())).await;
    trouble.end(&server).await;
    writability_becomes(&*late.storage, None).await;
    late.storage.create(&keys(50..60), None).await.unwrap();
    held.converges_to(&keys(0..60)).await;
    assert_eq!(held.resets, [], "{trouble:?}");
}

/// When Redis becomes a replica, it ends all blocking reads. A failed read of the log would make the server unready.
async fn becoming_read_only_fails_no_read_of_the_log(kind: ServerKind) {
    let server = kind.start(&[]);
    let storage = open(&server.url("buckets=64"), ROOMY).await;
    create(&*storage, &keys(0..10)).await;
    let log = storage.log().await.unwrap();
    let end = log.partitions[0].end;
    let reading = storage.changes_after(log.registry_id, 0, end, 100);
    let changing = async {
        for _ in 0..3 {
            Trouble::ReadOnly.begin(&server).await;
            writability_becomes(&*storage, Some(RefusalCause::ReadOnly)).await;
            Trouble::ReadOnly.end(&server).await;
            writability_becomes(&*storage, None).await;
        }
        create(&*storage, &keys(10..11)).await;
    };
    let (read, ()) = tokio::join!(reading, changing);
    assert_eq!(read.unwrap().events.len(), 1);
}

#[tokio::test]
async fn a_hanging_or_stopped_redis_is_reported_as_unreachable() {
    if !is_installed() {
        return;
    }
    let mut servers = [RedisServer::start(&[]), RedisServer::start(&[])];
    let (stuck, gone) =
        (open(&servers[0].url(PARAMETERS), ROOMY).await, open(&servers[1].url(PARAMETERS), ROOMY).await);
    servers[0].signal("STOP");
    servers[1].kill();
    tokio::join!(
        writability_becomes(&*stuck, Some(RefusalCause::Unreachable)),
        writability_becomes(&*gone, Some(RefusalCause::Unreachable))
    );
    servers[0].signal("CONT");
    servers[1].restart();
    tokio::join!(writability_becomes(&*stuck, None), writability_becomes(&*gone, None));
}

/// The other nodes still accept changes, so only some calls fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_cluster_node_that_refuses_changes_is_noticed() {
    if !is_installed() {
        return;
    }
    let cluster = RedisCluster::start_kind(ServerKind::Redis, 0, NODE_TIMEOUT, &[]);
    let storage = open(&cluster.url("timeout_ms=500&partitions=6&buckets=48"), ROOMY).await;
    writability_becomes(&*storage, None).await;
    // A node without a partition of the registry is not probed.
    let has_keys = |node: &&RedisServer| node.ask::<u64>(&cmd("DBSIZE")).unwrap() > 0;
    let node = cluster.nodes[..MASTERS].iter().rfind(has_keys).unwrap();
    let began = Instant::now();
    node.set("min-replicas-to-write", "1");
    writability_becomes(&*storage, Some(RefusalCause::TooFewReplicas)).await;
    assert_refused(storage.create(&keys(0..100), None).await, RefusalCause::TooFewReplicas);
    assert!(storage.has(&keys(0..100)).await.is_ok());
    node.set("min-replicas-to-write", "0");
    writability_becomes(&*storage, None).await;
    create(&*storage, &keys(0..100)).await;
    assert!(began.elapsed() < 2 * NOTICE_TIME);
}
