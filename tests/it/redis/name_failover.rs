//! A failover of Redis behind one name, while connections to the old master stay open.

use std::{sync::Arc, time::Duration};

use redis::cmd;
use sessiond::subject::Start;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    name::Name,
    replica::{Held, Replica, create, eventually, existing_of, keys},
    server::{RedisServer, ServerKind, on_each_server},
};

const PARAMETERS: &str = "timeout_ms=300&buckets=64";

/// A replica of sessiond finds the new master within this time.
const RECOVERY: Duration = Duration::from_secs(5);

/// A master and its replica.
struct Pair {
    old: RedisServer,
    new: RedisServer,
}

impl Pair {
    fn start(kind: ServerKind) -> Self {
        let old = kind.start(&["--repl-diskless-sync-delay", "0"]);
        let port = old.port.to_string();
        let new = kind.start(&["--replicaof", "127.0.0.1", &port, "--repl-diskless-sync-delay", "0"]);
        Self { old, new }
    }

    /// Waits until the replica has everything that the master has.
    async fn catch_up(&self) {
        let offset = |server: &RedisServer, field| server.info("replication", field);
        eventually(|| async {
            let is_linked = offset(&self.new, "master_link_status").as_deref() == Some("up");
            let has_all = offset(&self.old, "master_repl_offset") == offset(&self.new, "slave_repl_offset");
            (is_linked && has_all).then_some(())
        })
        .await;
    }

    /// Promotes the replica. The old master is not notified.
    fn promote(&self) {
        let () = self.new.ask(cmd("REPLICAOF").arg("NO").arg("ONE")).unwrap();
    }

    /// Makes the old master a replica of the new one.
    fn demote(&self) {
        let () = self.old.ask(cmd("REPLICAOF").arg("127.0.0.1").arg(self.new.port)).unwrap();
    }
}

impl RedisServer {
    /// Ends the connections whose client waits for log entries, or all others.
    async fn disconnect(&self, that_wait: bool) {
        let ended = || {
            let clients: String = self.ask(cmd("CLIENT").arg("LIST").arg("TYPE").arg("normal")).unwrap();
            let field = |client: &str, name: &str| {
                client.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('=')).unwrap().to_owned()
            };
            let is_meant = |client: &&str| field(client, "flags").contains('b') == that_wait;
            let is_own = |client: &&str| field(client, "cmd").starts_with("client");
            let ids = clients.lines().filter(is_meant).filter(|client| !is_own(client)).map(|line| field(line, "id"));
            ids.filter(|id| self.ask::<i64>(cmd("CLIENT").arg("KILL").arg("ID").arg(id)).unwrap() == 1).count()
        };
        eventually(|| async { (ended() > 0).then_some(()) }).await;
    }
}

/// Starts a pair behind a name, and a replica of sessiond with the sessions 0 to 49 and an observer that holds these.
async fn start(kind: ServerKind) -> (Pair, Name, Replica, Held) {
    let pair = Pair::start(kind);
    let name = Name::of(&pair.old).await;
    let replica = Replica::start(&name.url(PARAMETERS)).await;
    create(&*replica.storage, &keys(0..50)).await;
    let mut held = replica.watch(Start::Snapshot).await;
    held.converges_to(&keys(0..50)).await;
    (pair, name, replica, held)
}

on_each_server! {
    [#[tokio::test]] writes_continue_on_the_new_master;
    [#[tokio::test]] a_replaced_master_answers_no_call;
    [#[tokio::test]] the_log_reader_leaves_the_old_master;
    [#[tokio::test]] a_network_that_drops_all_packets_to_the_old_master_blocks_no_call;
}

async fn writes_continue_on_the_new_master(kind: ServerKind) {
    let (pair, name, a, mut held) = start(kind).await;
    let lease = a.storage.grant_lease(Duration::from_secs(600), "").await.unwrap();
    a.storage.create(&keys(50..60), Some(lease)).await.unwrap();
    held.converges_to(&keys(0..60)).await;
    // A writer runs during the whole failover.
    let (stop, stopped) = watch::channel(false);
    let storage = Arc::clone(&a.storage);
    let writing = tokio::spawn(async move {
        let mut n = 1000;
        while !*stopped.borrow() {
            let _ = storage.create(&keys(n..n + 3), None).await;
            n += 3;
            sleep(Duration::from_millis(2)).await;
        }
        n
    });

    pair.catch_up().await;
    pair.promote();
    name.point_to(&pair.new);
    pair.demote();
    let began = Instant::now();
    create(&*a.storage, &keys(100..110)).await;
    assert!(began.elapsed() < RECOVERY, "{:?}", began.elapsed());
    a.storage.keep_lease_alive(lease).await.unwrap();
    a.storage.destroy(&keys(0..5), None).await.unwrap();
    stop.send_replace(true);
    let written = writing.await.unwrap();
    let left = existing_of(keys(0..written), &a).await;
    let kept = [keys(5..60), keys(100..110)].concat();
    assert_eq!(left[..65], kept);
    held.converges_to(&left).await;
    a.watch(Start::Snapshot).await.converges_to(&left).await;
    assert_eq!(existing_of(keys(0..written), &Replica::start(&name.url(PARAMETERS)).await).await, left);
    assert_eq!(a.storage.revoke_lease(lease).await.unwrap(), 10);
}

/// The old master still serves the connections to it. But no call contradicts a change that was made on the new master
/// and sent to an observer.
async fn a_replaced_master_answers_no_call(kind: ServerKind) {
    let (pair, name, a, mut held) = start(kind).await;
    pair.catch_up().await;
    pair.promote();
    name.point_to(&pair.new);
    // Only the log reader has to reconnect.
    pair.old.disconnect(true).await;
    let b = Replica::start(&name.url(PARAMETERS)).await;
    b.storage.destroy(&keys(0..10), None).await.unwrap();
    create(&*b.storage, &keys(100..110)).await;
    let now = [keys(10..50), keys(100..110)].concat();
    held.converges_to(&now).await;
    assert_eq!(
        existing_of([keys(0..50), keys(100..110)].concat(), &a).await,
        now,
        "right after the observer received the changes"
    );
    a.watch(Start::Snapshot).await.converges_to(&now).await;
    create(&*a.storage, &keys(200..210)).await;
    assert_eq!(existing_of(keys(200..210), &b).await, keys(200..210));
    held.converges_to(&[now, keys(200..210)].concat()).await;
    assert_eq!(held.resets, [], "nothing was lost");
}

/// The opposite case: calls go to the new master, but the log reader is still connected to the old one.
async fn the_log_reader_leaves_the_old_master(kind: ServerKind) {
    let (pair, name, a, mut held) = start(kind).await;
    pair.catch_up().await;
    pair.promote();
    name.point_to(&pair.new);
    pair.old.disconnect(false).await;
    let began = Instant::now();
    create(&*a.storage, &keys(50..60)).await;
    held.converges_to(&keys(0..60)).await;
    assert!(began.elapsed() < RECOVERY, "{:?}", began.elapsed());
    let b = Replica::start(&name.url(PARAMETERS)).await;
    b.storage.destroy(&keys(0..10), None).await.unwrap();
    held.converges_to(&keys(10..60)).await;
    assert_eq!(held.resets, [], "nothing was lost");
}

async fn a_network_that_drops_all_packets_to_the_old_master_blocks_no_call(kind: ServerKind) {
    let (pair, name, a, mut held) = start(kind).await;
    pair.catch_up().await;
    name.stall(&pair.old);
    pair.promote();
    name.point_to(&pair.new);
    let began = Instant::now();
    create(&*a.storage, &keys(50..60)).await;
    held.converges_to(&keys(0..60)).await;
    assert!(began.elapsed() < RECOVERY, "{:?}", began.elapsed());
    a.watch(Start::Snapshot).await.converges_to(&keys(0..60)).await;
    assert_eq!(held.resets, [], "nothing was lost");
}
