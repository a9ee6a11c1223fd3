//! Concurrent calls on one session through several replicas take effect one after another, each between its start and
//! its end.
//!
//! `SESSIOND_TEST_HISTORIES` sets how many histories each test with faults checks.

mod order;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{RedisResult, cmd};
use sessiond::{
    session::{LeaseId, SessionKey},
    storage::{CreateOptions, Creation, Lookup, SessionStorage, StorageError, Takeover},
};
use tokio::{
    select,
    task::{JoinSet, block_in_place},
    time::sleep,
};

use self::order::{Action, Answer, Call, Lease, is_linearizable};
use super::{
    ROOMY,
    cluster::{MASTERS, RedisCluster},
    gate::Gate,
    open,
    replica::keys,
    sentinels::{MASTER, SentinelGroup},
    server::{RedisServer, is_installed},
};
use crate::long::number;

/// How many callers use a session.
const CALLERS: usize = 6;

/// How many histories run concurrently, so that calls on several sessions share scripts.
const CONCURRENCY: i64 = 8;

/// The replicas of a registry, and the leases that the sessions come under.
struct Registry {
    replicas: Vec<Arc<dyn SessionStorage>>,
    leases: [LeaseId; 2],
}

impl Registry {
    async fn open(urls: [&str; 3]) -> Arc<Self> {
        let [a, b, c] = urls.map(|url| open(url, ROOMY));
        let replicas = vec![a.await, b.await, c.await];
        let hour = Duration::from_secs(3600);
        let leases =
            [replicas[0].grant_lease(hour, "").await.unwrap(), replicas[1].grant_lease(hour, "").await.unwrap()];
        Arc::new(Self { replicas, leases })
    }

    fn lease(&self, lease: Lease) -> Option<LeaseId> {
        lease.checked_sub(1).map(|place| self.leases[usize::from(place)])
    }

    /// Runs several callers concurrently through all replicas, and returns their calls.
    async fn history(self: Arc<Self>, session: SessionKey, calls: usize) -> Vec<Call> {
        let clock = Arc::new(AtomicU64::new(0));
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let (registry, clock) = (Arc::clone(&self), Arc::clone(&clock));
            callers.spawn(async move {
                let mut made = Vec::new();
                for _ in 0..calls / CALLERS {
                    let lease = fastrand::u8(..3);
                    let take = Action::Take(fastrand::u8(1..3), fastrand::u8(..3));
                    let actions = [Action::Create(lease), take, Action::Has, Action::Lookup, Action::Destroy(lease)];
                    let action = actions[fastrand::usize(..actions.len())];
                    made.push(registry.call(caller, session, action, &clock).await);
                }
                made
            });
        }
        callers.join_all().await.concat()
    }

    async fn call(&self, caller: usize, session: SessionKey, action: Action, clock: &AtomicU64) -> Call {
        let storage = &self.replicas[caller % self.replicas.len()];
        let one = [session];
        let begin = clock.fetch_add(1, Ordering::SeqCst);
        let answer = self.ask(&**storage, &one, action).await;
        let end = clock.fetch_add(1, Ordering::SeqCst);
        let answer = match answer {
            Ok(answer) => Some(answer),
            Err(StorageError::Unavailable(_)) => None,
            Err(error) => panic!("{error:?}"),
        };
        Call { action, begin, end, answer }
    }

    async fn ask(
        &self,
        storage: &dyn SessionStorage,
        one: &[SessionKey],
        action: Action,
    ) -> Result<Answer, StorageError> {
        let plain = |yes| Answer { yes, lease: None };
        let with_lease = |yes, lease: Option<LeaseId>| {
            let place = lease.map_or(0, |lease| 1 + u8::from(lease == self.leases[1]));
            Answer { yes, lease: Some(place) }
        };
        let create = async |options| {
            let Creation { created, lease, .. } = storage.create_with(one, options).await?.sessions[0];
            Ok::<_, StorageError>(with_lease(created, lease))
        };
        Ok(match action {
            Action::Create(lease) => create(self.lease(lease).into()).await?,
            Action::Take(lease, from) => {
                let takeover = Takeover::OnlyFrom(self.lease(from));
                create(CreateOptions::from(self.lease(lease)).takeover(takeover)).await?
            }
            Action::Has => plain(storage.has(one).await?[0]),
            Action::Lookup => match storage.lookup(one).await?[0] {
                Lookup { exists: true, lease, .. } => with_lease(true, lease),
                _ => plain(false),
            },
            Action::Destroy(lease) => plain(storage.destroy(one, self.lease(lease)).await?[0]),
        })
    }

    /// Checks `histories` histories, a few at a time. Returns how many calls were made and how many failed.
    async fn check(self: &Arc<Self>, histories: u32, calls: usize) -> (usize, usize) {
        let (mut made, mut failed) = (0, 0);
        for first in (0..i64::from(histories)).step_by(CONCURRENCY as usize) {
            let mut under_way = JoinSet::new();
            for n in first..first + CONCURRENCY {
                under_way.spawn(Arc::clone(self).history(SessionKey::new(0, n), calls));
            }
            for history in under_way.join_all().await {
                made += history.len();
                failed += history.iter().filter(|call| call.answer.is_none()).count();
                assert!(is_linearizable(&history), "{history:#?}");
            }
        }
        (made, failed)
    }

    /// Does the same as [`Self::check`], with a load of batches on other sessions.
    async fn check_under_load(self: &Arc<Self>, histories: u32, calls: usize) -> (usize, usize) {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut loading = JoinSet::new();
        for n in 0..2 * self.replicas.len() {
            let (registry, is_over) = (Arc::clone(self), Arc::clone(&is_over));
            loading.spawn(async move {
                let first = 10_000 * (1 + n as i64);
                let storage = &registry.replicas[n % registry.replicas.len()];
                while !is_over.load(Ordering::Relaxed) {
                    let some = keys(first..first + fastrand::i64(500..2000));
                    // These calls may fail.
                    drop(storage.create(&some, registry.lease(n as u8 % 3)).await);
                    drop(storage.destroy(&some, None).await);
                }
            });
        }
        let checked = self.check(histories, calls).await;
        is_over.store(true, Ordering::Relaxed);
        while loading.join_next().await.is_some() {}
        checked
    }
}

/// Checks histories in which calls fail because of `fault`.
async fn check_with_faults(registry: Arc<Registry>, fault: impl Future<Output = ()>) {
    let histories = number("SESSIOND_TEST_HISTORIES", 16);
    let (made, failed) = select! {
        checked = registry.check_under_load(histories, 90) => checked,
        () = fault => unreachable!("the faults never end"),
    };
    assert!(failed > 0, "none of {made} calls failed");
}

/// Sleeps for a time that is often shorter and often longer than a call may take.
async fn some_time() {
    sleep(Duration::from_millis(fastrand::u64(10..450))).await;
}

async fn short_time() {
    sleep(Duration::from_millis(fastrand::u64(5..80))).await;
}

const PARAMETERS: &str = "buckets=16&timeout_ms=100";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_through_several_replicas_are_linearizable() {
    if is_installed() {
        let server = RedisServer::start(&[]);
        Registry::open([&server.url("buckets=16"); 3]).await.check(200, 120).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_to_a_cluster_are_linearizable() {
    if is_installed() {
        let cluster = RedisCluster::start(0);
        Registry::open([&cluster.url("partitions=4&buckets=16"); 3]).await.check(56, 120).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_to_a_master_behind_sentinel_are_linearizable() {
    if is_installed() {
        let group = block_in_place(SentinelGroup::start);
        Registry::open([&group.url("buckets=16"); 3]).await.check(56, 120).await;
    }
}

/// An operator moves the role of the master from one server to the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_linearizable_while_sentinel_fails_over_by_command() {
    if !is_installed() {
        return;
    }
    let group = block_in_place(SentinelGroup::start);
    let registry = Registry::open([&group.url("buckets=16&wait_replicas=1&timeout_ms=300"); 3]).await;
    check_with_faults(registry, async {
        loop {
            short_time().await;
            // Refused while the previous failover is under way.
            let _: RedisResult<String> = group.sentinels[0].ask(cmd("SENTINEL").arg("FAILOVER").arg(MASTER));
        }
    })
    .await;
}

/// The master is frozen repeatedly, at times for long enough that Sentinel replaces it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_linearizable_while_sentinel_replaces_frozen_masters() {
    if !is_installed() {
        return;
    }
    let group = block_in_place(SentinelGroup::start);
    let registry = Registry::open([&group.url("buckets=16&wait_replicas=2&timeout_ms=300"); 3]).await;
    check_with_faults(registry, async {
        loop {
            short_time().await;
            let master = block_in_place(|| group.master());
            group.servers[master].signal("STOP");
            sleep(Duration::from_millis(fastrand::u64(100..6000))).await;
            group.servers[master].signal("CONT");
            block_in_place(|| group.wait("the frozen server to be back", SentinelGroup::is_whole));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_over_cut_connections_are_linearizable() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let registry = Registry::open([&server.url("buckets=16&timeout_ms=300"); 3]).await;
    let cutting = async {
        loop {
            sleep(Duration::from_millis(fastrand::u64(1..15))).await;
            let _: i64 =
                server.ask(cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes")).unwrap();
        }
    };
    select! {
        _ = registry.check(24, 120) => {}
        () = cutting => {}
    }
    assert_eq!(server.ask::<String>(&cmd("PING")).unwrap(), "PONG");
}

/// Redis is paused repeatedly, for shorter and for longer than calls take to fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_linearizable_while_redis_pauses_and_resumes() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let registry = Registry::open([&server.url(PARAMETERS); 3]).await;
    check_with_faults(registry, async {
        loop {
            short_time().await;
            server.signal("STOP");
            some_time().await;
            server.signal("CONT");
        }
    })
    .await;
}

/// The connections of two replicas are stuck again and again, while the third has no fault.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_linearizable_while_some_replicas_connections_are_stuck() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let gates = [Gate::before(&server).await, Gate::before(&server).await];
    let urls = [gates[0].url(PARAMETERS), gates[1].url(PARAMETERS), server.url(PARAMETERS)];
    let registry = Registry::open(urls.each_ref().map(String::as_str)).await;
    let fault = async |gate: &Gate| {
        loop {
            short_time().await;
            gate.shut();
            some_time().await;
            gate.open();
        }
    };
    check_with_faults(registry, async {
        tokio::join!(fault(&gates[0]), fault(&gates[1]));
    })
    .await;
}

/// The nodes of a cluster are paused in turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_linearizable_while_cluster_nodes_pause_and_resume() {
    if !is_installed() {
        return;
    }
    let cluster = RedisCluster::start(0);
    let url = cluster.url("partitions=6&buckets=48&timeout_ms=100");
    let registry = Registry::open([&url; 3]).await;
    check_with_faults(registry, async {
        loop {
            for node in (0..MASTERS).cycle() {
                short_time().await;
                cluster.nodes[node].signal("STOP");
                some_time().await;
                cluster.nodes[node].signal("CONT");
            }
        }
    })
    .await;
}
