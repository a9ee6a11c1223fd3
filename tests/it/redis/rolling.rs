//! Restarts three servers over one Redis one after another, adds one and removes one, under load.
//!
//! `SESSIOND_TEST_ROLLS` sets how often each is restarted: once by default. `SESSIOND_TEST_OTHER_BUILD` names the program
//! of another build. The servers then begin with that, and each round of restarts changes to the other of both builds:
//! the first upgrades, the second goes back.

use std::{cell::Cell, time::Duration};

use futures_util::future::join_all;
use sessiond::{
    client::{Client, Watch, WatchOptions, WatchUpdate},
    session::{DestroyReason, SessionChange, SessionEvent, SessionKey},
};
use tokio::{
    join,
    time::{Instant, sleep, timeout},
};

use super::{
    balancer::Balancer,
    server::{RedisServer, is_installed},
};
use crate::{
    fake::soon,
    program::{Program, own_address},
    retry::{Retrying, Tally},
};

const REPLICAS: usize = 3;
const WRITERS: i64 = 9;
/// How many sessions each writer has.
const SESSIONS: i64 = 50;
/// How many calls are made between two restarts.
const CALLS_BETWEEN: u64 = 500;
/// The number of the first gateway. There is one gateway, with a lease, at each replica.
const GATEWAYS: i64 = 100;

/// The last session created.
const MARKER: SessionKey = SessionKey::new(-1, 0);

/// The progress of the load, shared with the operator that restarts the servers.
#[derive(Default)]
struct Progress {
    calls: Cell<u64>,
    is_over: Cell<bool>,
}

/// Changes the writer's own sessions one at a time. Returns its changes.
async fn write(writer: i64, mut client: Retrying, progress: &Progress) -> (Vec<SessionEvent>, Tally) {
    let mut written = Vec::new();
    let mut exists = [false; SESSIONS as usize];
    while !progress.is_over.get() {
        let id = fastrand::usize(0..exists.len());
        let session = SessionKey::new(writer, id as i64);
        let (changed, change) = if exists[id] {
            let destroyed = client.call(async |client| client.destroy(session).await).await;
            (destroyed, SessionChange::Destroyed(DestroyReason::Requested))
        } else {
            (client.call(async |client| client.create(session).await).await, SessionChange::Created)
        };
        let changed = changed.expect("calls retried as the README says succeed");
        // Only a retried call may find its change already made.
        assert!(changed.answer || !changed.at_once, "{session:?}");
        exists[id] = !exists[id];
        written.push(SessionEvent::new(session, change, None));
        progress.calls.set(progress.calls.get() + 1);
        sleep(Duration::from_millis(fastrand::u64(0..8))).await;
    }
    (written, client.tally)
}

struct Observer {
    clients: Vec<Client>,
    replica: usize,
    /// Whether it resumes at the next replica instead of waiting for its own to come back.
    moves: bool,
    watch: Watch,
    received: Vec<SessionEvent>,
    resumed: u64,
}

impl Observer {
    async fn start(clients: &[Client], replica: usize, moves: bool) -> Self {
        let mut watch = clients[replica].watch(WatchOptions::default());
        assert!(matches!(soon(watch.next()).await.unwrap(), WatchUpdate::Subscribed { .. }));
        Self { clients: clients.to_vec(), replica, moves, watch, received: Vec::new(), resumed: 0 }
    }

    /// Observes until the marker is created.
    async fn observe(&mut self) {
        while self.received.last().is_none_or(|event| event.session != MARKER) {
            match self.watch.next().await.unwrap() {
                WatchUpdate::Events(events) => self.received.extend(events),
                WatchUpdate::Disconnected { .. } => {
                    self.resumed += 1;
                    if self.moves {
                        let cursor = self.watch.cursor().expect("the stream is not in a snapshot");
                        self.replica = (self.replica + 1) % self.clients.len();
                        self.watch = self.clients[self.replica].watch(WatchOptions::after(cursor));
                    }
                }
                WatchUpdate::Subscribed { .. } | WatchUpdate::Heartbeat => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Asserts that the observer received exactly the writer's changes, in order.
    fn assert_exact(&self, writer: i64, written: &[SessionEvent]) {
        let received = self.received.iter().filter(|event| event.session.auth_key_id.0 == writer);
        assert!(received.eq(written), "of writer {writer}, at replica {}", self.replica);
    }
}

/// Starts a server of this build, or of the other one if there is one.
async fn start(listen: &str, args: &[&str], is_other: bool) -> Program {
    let other = std::env::var("SESSIOND_TEST_OTHER_BUILD").ok().filter(|_| is_other);
    match other {
        None => Program::start_on(listen, args).await,
        Some(build) => {
            let exec = format!("exec '{build}' \"$@\"");
            Program::start_within(&["sh", "-c", &exec], &[&["--listen", listen], args].concat()).await
        }
    }
}

/// Restarts each server in turn, as an orchestrator does: the next one once the last is back. Returns the longest
/// drain.
async fn roll(programs: &mut [Program], rolls: u32, args: &[&str], progress: &Progress) -> Duration {
    let mut longest = Duration::ZERO;
    for (roll, program) in (0..rolls).flat_map(|roll| (0..REPLICAS).map(move |program| (roll, program))) {
        let program = &mut programs[program];
        wait_for_more_calls(progress).await;
        let began = Instant::now();
        program.signal("TERM").await;
        assert_eq!(program.exit_code().await, Some(0), "{}", program.log());
        longest = longest.max(began.elapsed());
        assert!(program.log().contains("drained"), "{}", program.log());
        // The server stays away as long as another node needs to start it.
        wait_for_more_calls(progress).await;
        *program = start(&program.addr.to_string(), args, roll % 2 == 1).await;
    }
    wait_for_more_calls(progress).await;
    longest
}

async fn wait_for_more_calls(progress: &Progress) {
    let calls = progress.calls.get() + CALLS_BETWEEN;
    soon(async {
        while progress.calls.get() < calls {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_under_load_fails_no_call_and_resets_no_observer() {
    if !is_installed() {
        return;
    }
    let rolls: u32 = std::env::var("SESSIOND_TEST_ROLLS").map_or(1, |n| n.parse().unwrap());
    let redis = RedisServer::start(&[]);
    let storage = redis.url("buckets=64");
    let args = ["--workers", "1", "--storage", &storage];
    let mut programs = Vec::new();
    for _ in 0..REPLICAS {
        programs.push(start(&own_address(), &args, true).await);
    }
    let clients: Vec<Client> =
        programs.iter().map(|program| Client::connect_lazy(&format!("http://{}", program.addr)).unwrap()).collect();
    let mut observers = Vec::new();
    for number in 0..2 * REPLICAS {
        observers.push(Observer::start(&clients, number % REPLICAS, number < REPLICAS).await);
    }
    // Each gateway keeps its lease alive through one replica only.
    let mut gateways = Vec::new();
    for (number, client) in (GATEWAYS..).zip(&clients) {
        let lease = client.lease(Duration::from_secs(10), "gateway").await.unwrap();
        let sessions: Vec<SessionKey> = (0..SESSIONS).map(|id| SessionKey::new(number, id)).collect();
        client.batch_create_under(&sessions, lease.id()).await.unwrap();
        gateways.push((number, lease.id(), lease, sessions));
    }

    let progress = Progress::default();
    let load = async {
        let writing = join_all(
            (0..WRITERS).map(|writer| write(writer, Retrying::new(clients.clone(), writer as usize), &progress)),
        );
        let rolling = async {
            let longest = roll(&mut programs, rolls, &args, &progress).await;
            progress.is_over.set(true);
            longest
        };
        let (written, longest) = join!(writing, rolling);
        clients[0].create(MARKER).await.unwrap();
        (written, longest)
    };
    let observing = join_all(observers.iter_mut().map(Observer::observe));
    let limit = Duration::from_secs(60) * (1 + rolls);
    let ((written, longest), _) =
        timeout(limit, async { join!(load, observing) }).await.expect("every observer receives all events");

    let mut tally = Tally::default();
    for (writer, (written, writers)) in (0..).zip(written) {
        observers.iter().for_each(|observer| observer.assert_exact(writer, &written));
        tally += writers;
    }
    for (number, id, lease, sessions) in gateways {
        assert!(lease.is_held() && lease.id() == id, "the lease was kept");
        let created: Vec<SessionEvent> = sessions.iter().map(|session| SessionEvent::created(*session, None)).collect();
        observers.iter().for_each(|observer| observer.assert_exact(number, &created));
        assert_eq!(lease.revoke().await.unwrap(), created.len() as u64);
    }
    let resumed: u64 = observers.iter().map(|observer| observer.resumed).sum();
    assert!(resumed >= 2 * REPLICAS as u64, "every observer resumed after each restart");
    println!(
        "{} restarts: {} calls answered, {} failed attempts; {} observers resumed {resumed} times; longest drain {longest:?}",
        rolls as usize * REPLICAS,
        tally.calls,
        tally.failed_tries,
        observers.len(),
    );
}

/// Each has its own connection.
const BALANCED_OBSERVERS: usize = 12;

/// Servers behind a load balancer. Every client has a connection of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_added_replica_takes_its_share_and_a_removed_one_goes_unnoticed() {
    if !is_installed() {
        return;
    }
    let redis = RedisServer::start(&[]);
    let storage = redis.url("buckets=64");
    let args = ["--workers", "1", "--max-connection-age", "2s", "--storage", &storage];
    let mut programs = vec![Program::start(&args).await, Program::start(&args).await];
    let addrs = |programs: &[Program]| programs.iter().map(|program| program.addr).collect::<Vec<_>>();
    let balancer = Balancer::start(addrs(&programs)).await;
    let client = || Client::connect_lazy(&format!("http://{}", balancer.addr)).unwrap();
    let mut observers = Vec::new();
    for _ in 0..BALANCED_OBSERVERS {
        observers.push(Observer::start(&[client()], 0, false).await);
    }

    let progress = Progress::default();
    let load = async {
        let writing = join_all((0..WRITERS).map(|writer| write(writer, Retrying::new(vec![client()], 0), &progress)));
        let resizing = async {
            wait_for_more_calls(&progress).await;
            programs.push(Program::start(&args).await);
            balancer.set(addrs(&programs));
            let created = "grpc_server_started_total{grpc_type=\"unary\",\
                grpc_service=\"sessiond.v1.SessionService\",grpc_method=\"CreateSession\"}";
            soon(async {
                let share = BALANCED_OBSERVERS as u64 / 4;
                let added = &programs[2];
                while added.metric("sessiond_observers").await < share || added.metric(created).await == 0 {
                    sleep(Duration::from_millis(50)).await;
                }
            })
            .await;
            let mut removed = programs.remove(0);
            balancer.set(addrs(&programs));
            removed.signal("TERM").await;
            assert_eq!(removed.exit_code().await, Some(0), "{}", removed.log());
            wait_for_more_calls(&progress).await;
            progress.is_over.set(true);
        };
        let (written, ()) = join!(writing, resizing);
        client().create(MARKER).await.unwrap();
        written
    };
    let observing = join_all(observers.iter_mut().map(Observer::observe));
    let limit = Duration::from_secs(120);
    let (written, _) =
        timeout(limit, async { join!(load, observing) }).await.expect("every observer receives all events");
    for (writer, (written, _)) in (0..).zip(written) {
        observers.iter().for_each(|observer| observer.assert_exact(writer, &written));
    }
}
