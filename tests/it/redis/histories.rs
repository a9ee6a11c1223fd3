//! Redis goes back to an old state and continues differently. No cursor from the lost history is taken for a place in
//! the new one.

use std::{sync::Arc, time::Duration};

use redis::cmd;
use sessiond::{
    session::SessionKey,
    storage::{LogError, LogPoint, Position},
    subject::Start,
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    ROOMY,
    gate::Gate,
    open,
    replica::{Replica, create, eventually, keys},
    server::{RedisServer, ServerKind, on_each_server},
};

const PARAMETERS: &str = "timeout_ms=300&buckets=64";

impl RedisServer {
    /// Saves all data to the dump.
    fn save(&self) {
        let () = self.ask(&cmd("SAVE")).unwrap();
    }

    /// Loads the dump again while all connections stay open.
    fn reload_dump(&self) {
        let () = self.ask(cmd("DEBUG").arg("RELOAD").arg("NOSAVE")).unwrap();
    }
}

/// Starts a server that holds `keys(0..80)` and whose dump holds `keys(0..50)`.
async fn with_old_dump(kind: ServerKind) -> (RedisServer, Replica, String) {
    let server = kind.start(kind.with_debug());
    let url = server.url(PARAMETERS);
    let a = Replica::start(&url).await;
    create(&*a.storage, &keys(0..50)).await;
    server.save();
    create(&*a.storage, &keys(50..80)).await;
    (server, a, url)
}

fn dump_and(further: std::ops::Range<i64>) -> Vec<SessionKey> {
    [keys(0..50), keys(further)].concat()
}

on_each_server! {
    [#[tokio::test]] loading_a_dump_twice_honours_no_cursor_of_lost_changes;
    [#[tokio::test]] changes_lost_while_no_replica_runs_reset_their_cursors;
    [#[tokio::test]] data_replaced_under_open_connections_resets_every_stream_once;
    [#[tokio::test]] a_snapshot_during_a_data_replacement_is_exact;
    [#[tokio::test]] reloading_the_same_data_resets_no_stream;
    [#[tokio::test]] a_failover_while_no_replica_runs_resets_the_cursors_of_lost_changes;
    [#[tokio::test]] a_loss_resets_streams_once_when_few_events_are_retained;
    [#[tokio::test]] a_handle_never_continues_from_a_place_in_a_lost_history;
    [#[tokio::test]] a_lost_history_is_left_without_waiting_for_redis_replicas;
}

async fn loading_a_dump_twice_honours_no_cursor_of_lost_changes(kind: ServerKind) {
    let (mut server, a, url) = with_old_dump(kind).await;
    let mut held = a.watch(Start::Snapshot).await;
    held.converges_to(&keys(0..80)).await;
    let first = held.observer.cursor().unwrap();

    server.restart();
    create(&*a.storage, &keys(200..220)).await;
    held.resets_once_to(&dump_and(200..220)).await;
    let second = held.observer.cursor().unwrap();

    server.restart();
    // The log grows past every position in the cursors.
    create(&*a.storage, &keys(300..360)).await;
    held.resets.clear();
    held.resets_once_to(&dump_and(300..360)).await;
    let b = Replica::start(&url).await;
    for replica in [&a, &b] {
        let before = [(first.clone(), keys(0..80)), (second.clone(), dump_and(200..220))];
        for (cursor, sessions) in before {
            replica.resume(cursor, &sessions).await.resets_once_to(&dump_and(300..360)).await;
        }
        let third = held.observer.cursor().unwrap();
        let mut on = replica.resume(third, &dump_and(300..360)).await;
        create(&*a.storage, &[SessionKey::new(0, 999)]).await;
        on.converges_to(&[dump_and(300..360), vec![SessionKey::new(0, 999)]].concat()).await;
        assert_eq!(on.resets, [], "a cursor of this history resumes");
        a.storage.destroy(&[SessionKey::new(0, 999)], None).await.unwrap();
        held.converges_to(&dump_and(300..360)).await;
    }
}

/// Reads and streams go on at once, although Redis has lost its replicas too, for which a change would wait.
async fn a_lost_history_is_left_without_waiting_for_redis_replicas(kind: ServerKind) {
    const WAIT: Duration = Duration::from_secs(30);
    let (mut server, a, url) = with_old_dump(kind).await;
    let patient = Replica::start(&format!("{url}&wait_replicas=1&wait_timeout_ms={}", WAIT.as_millis())).await;
    let mut held = patient.watch(Start::Snapshot).await;
    held.converges_to(&keys(0..80)).await;
    drop(a);
    server.restart();
    let began = Instant::now();
    held.resets_once_to(&keys(0..50)).await;
    assert_eq!(patient.storage.has(&keys(50..80)).await.unwrap(), [false; 30]);
    assert!(began.elapsed() < WAIT, "{:?}", began.elapsed());
}

/// No replica that had read the lost changes is running.
async fn changes_lost_while_no_replica_runs_reset_their_cursors(kind: ServerKind) {
    let (mut server, a, url) = with_old_dump(kind).await;
    let mut held = a.watch(Start::Snapshot).await;
    held.converges_to(&keys(0..80)).await;
    let lost = held.observer.cursor().unwrap();
    drop((held, a));
    server.restart();
    let b = Replica::start(&url).await;
    // The log is first shorter than the cursor, then as long, then longer.
    let mut now = keys(0..50);
    for some in [keys(200..210), keys(210..230), keys(230..300)] {
        create(&*b.storage, &some).await;
        now.extend(some);
        b.resume(lost.clone(), &keys(0..80)).await.resets_once_to(&now).await;
    }
}

async fn data_replaced_under_open_connections_resets_every_stream_once(kind: ServerKind) {
    let (server, a, url) = with_old_dump(kind).await;
    let b = Replica::start(&url).await;
    for round in 1..=3 {
        let first = 1000 * round;
        create(&*a.storage, &keys(first..first + 40)).await;
        let before = if round == 1 { keys(0..80) } else { keys(0..50) };
        let before = [before, keys(first..first + 40)].concat();
        let mut held = [a.watch(Start::Snapshot).await, b.watch(Start::Snapshot).await];
        for held in &mut held {
            held.converges_to(&before).await;
        }
        let lost = held[0].observer.cursor().unwrap();
        server.reload_dump();
        // The log is immediately longer again than what the replicas had read. The writer has not read the lost log.
        let writer = Replica::start(&url).await;
        create(&*writer.storage, &keys(first + 100..first + 200)).await;
        let now = dump_and(first + 100..first + 200);
        for held in &mut held {
            held.resets_once_to(&now).await;
        }
        for replica in [&a, &b, &writer] {
            replica.resume(lost.clone(), &before).await.resets_once_to(&now).await;
            replica.watch(Start::Snapshot).await.converges_to(&now).await;
        }
        create(&*a.storage, &keys(first + 200..first + 210)).await;
        for held in &mut held {
            held.converges_to(&dump_and(first + 100..first + 210)).await;
        }
        // The next round starts from the dump.
        server.reload_dump();
        for held in &mut held {
            held.resets.clear();
            held.resets_once_to(&keys(0..50)).await;
        }
    }
}

/// If Redis retains few changes, the tail retains none and followers read the log themselves. Both then notice the
/// loss.
async fn a_loss_resets_streams_once_when_few_events_are_retained(kind: ServerKind) {
    let server = kind.start(kind.with_debug());
    let url = server.url("timeout_ms=1000&partitions=2&buckets=64");
    let options = ROOMY.retain_events(2000);
    let [a, b] = [Replica::start_with(&url, options).await, Replica::start_with(&url, options).await];
    create(&*a.storage, &keys(0..50)).await;
    server.save();
    for round in 1..=5 {
        let first = 1000 * round;
        create(&*a.storage, &keys(first..first + 100)).await;
        let mut held = [a.watch(Start::Snapshot).await, b.watch(Start::Snapshot).await];
        for held in &mut held {
            held.converges_to(&dump_and(first..first + 100)).await;
        }
        server.reload_dump();
        let storage = Arc::clone(if round % 2 == 0 { &a.storage } else { &b.storage });
        create(&*storage, &keys(first + 100..first + 110)).await;
        for held in &mut held {
            held.resets_once_to(&dump_and(first + 100..first + 110)).await;
        }
        // A second reset would arrive with the next changes.
        create(&*a.storage, &keys(first + 110..first + 120)).await;
        for held in &mut held {
            held.converges_to(&dump_and(first + 100..first + 120)).await;
            assert_eq!(held.resets.len(), 1);
        }
        drop(held);
        server.reload_dump();
        for replica in [&a, &b] {
            replica.watch(Start::Snapshot).await.converges_to(&keys(0..50)).await;
        }
    }
}

/// Redis goes back to its dump while an observer reads a snapshot in chunks.
async fn a_snapshot_during_a_data_replacement_is_exact(kind: ServerKind) {
    let server = kind.start(kind.with_debug());
    let url = server.url("timeout_ms=1000&buckets=512");
    let a = Replica::start(&url).await;
    for some in keys(0..20_000).chunks(4000) {
        create(&*a.storage, some).await;
    }
    server.save();
    create(&*a.storage, &keys(20_000..22_000)).await;
    let mut whole = a.watch(Start::Snapshot).await;
    whole.converges_to(&keys(0..22_000)).await;
    for chunks in 1..4 {
        let mut held = a.watch(Start::Snapshot).await;
        for _ in 0..=chunks {
            held.read().await;
        }
        assert!(!held.is_synced && held.sessions.len() < 20_000, "the snapshot is in progress");
        server.reload_dump();
        let writer = Replica::start(&url).await;
        // The new history has other sessions at the same positions, and some of the lost sessions.
        create(&*writer.storage, &[keys(21_000..22_500), keys(30_000..31_000)].concat()).await;
        let now = [keys(0..20_000), keys(21_000..22_500), keys(30_000..31_000)].concat();
        held.converges_to(&now).await;
        assert!(held.resets.len() <= 1, "{:?}", held.resets);
        whole.resets.clear();
        whole.resets_once_to(&now).await;
    }
}

async fn reloading_the_same_data_resets_no_stream(kind: ServerKind) {
    let (server, a, url) = with_old_dump(kind).await;
    let mut held = a.watch(Start::Snapshot).await;
    held.converges_to(&keys(0..80)).await;
    let cursor = held.observer.cursor().unwrap();
    let () = server.ask(cmd("DEBUG").arg("RELOAD")).unwrap();
    create(&*a.storage, &keys(80..90)).await;
    held.converges_to(&keys(0..90)).await;
    assert_eq!(held.resets, []);
    let b = Replica::start(&url).await;
    for replica in [&a, &b] {
        let mut on = replica.resume(cursor.clone(), &keys(0..80)).await;
        on.converges_to(&keys(0..90)).await;
        assert_eq!(on.resets, []);
    }
}

/// A replica of Redis that lacks the newest changes replaces its master. No replica of sessiond starts until
/// afterwards.
async fn a_failover_while_no_replica_runs_resets_the_cursors_of_lost_changes(kind: ServerKind) {
    let old = kind.start(&["--repl-diskless-sync-delay", "0"]);
    let a = Replica::start(&old.url(PARAMETERS)).await;
    create(&*a.storage, &keys(0..50)).await;
    let mut held = a.watch(Start::Snapshot).await;
    held.converges_to(&keys(0..50)).await;
    let kept = held.observer.cursor().unwrap();
    let new = kind.start(&["--replicaof", "127.0.0.1", &old.port.to_string(), "--repl-diskless-sync-delay", "0"]);
    eventually(|| async {
        let is_linked = new.info("replication", "master_link_status").as_deref() == Some("up");
        let has_all = old.info("replication", "master_repl_offset") == new.info("replication", "slave_repl_offset");
        (is_linked && has_all).then_some(())
    })
    .await;
    let () = new.ask(cmd("REPLICAOF").arg("NO").arg("ONE")).unwrap();
    create(&*a.storage, &keys(50..80)).await;
    held.converges_to(&keys(0..80)).await;
    let lost = held.observer.cursor().unwrap();
    drop((held, a));
    let b = Replica::start(&new.url(PARAMETERS)).await;
    create(&*b.storage, &keys(200..260)).await;
    b.resume(lost, &keys(0..80)).await.resets_once_to(&dump_and(200..260)).await;
    let mut on = b.resume(kept, &keys(0..50)).await;
    on.converges_to(&dump_and(200..260)).await;
    assert_eq!(on.resets, [], "the new master has every change up to that cursor");
}

/// How a handle reports a place in the log.
#[derive(Clone, Copy, Debug)]
enum Report {
    Buckets,
    Marks,
    End,
}

/// A handle reports a place that its tail has not read yet. Redis loses that place, but nothing that the tail has read,
/// and then grows past it.
async fn a_handle_never_continues_from_a_place_in_a_lost_history(kind: ServerKind) {
    for report in [Report::Buckets, Report::Marks, Report::End] {
        let server = kind.start(kind.with_debug());
        let gate = Gate::before(&server).await;
        let parameters = "timeout_ms=3000&buckets=64";
        let storage = open(&gate.url(parameters), ROOMY).await;
        create(&*storage, &keys(0..50)).await;
        server.save();
        let log = storage.log().await.unwrap();
        let (id, mut after) = (log.registry_id, log.partitions[0].start);
        while after != log.partitions[0].end {
            after = after.past(&storage.changes_after(id, 0, after, 100).await.unwrap());
        }
        gate.shut_to("XREAD").await;

        let other = open(&server.url(parameters), ROOMY).await;
        create(&*other, &keys(50..80)).await;
        drop(other);
        let ahead = match report {
            Report::Buckets => storage.read_buckets(id, &[after], &[0], 1000, false).await.unwrap().points[0],
            Report::Marks => {
                let position = Position(75);
                LogPoint { position, mark: storage.marks(&[position]).await.unwrap()[0].unwrap() }
            }
            Report::End => storage.log().await.unwrap().partitions[0].end,
        };
        assert!(ahead.position > after.position, "the tail has not read that far");

        server.reload_dump();
        let writer = open(&server.url(parameters), ROOMY).await;
        create(&*writer, &keys(100..200)).await;
        gate.open();
        let follows = async {
            loop {
                match storage.changes_after(id, 0, after, 10).await {
                    Ok(changes) => after = after.past(&changes),
                    Err(LogError::Restarted) => return,
                    Err(LogError::Storage(_)) => sleep(Duration::from_millis(20)).await,
                    Err(error) => panic!("{error}"),
                }
                assert!(after.position < ahead.position, "{report:?}: continued past {ahead:?} in another history");
            }
        };
        timeout(Duration::from_secs(20), follows).await.unwrap();
    }
}
