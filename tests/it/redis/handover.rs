//! An operator hands over from a master to its replica with FAILOVER, under load, also to upgrade Redis.

use std::{
    mem, thread,
    time::{Duration, Instant},
};

use redis::cmd;
use tokio::task::block_in_place;

use super::{
    failover::{Fleet, Loss, Servers, Switch},
    name::Name,
    server::{RedisServer, ServerKind, is_installed, on_each_server},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A master behind a name, and its replica.
struct Pair {
    master: RedisServer,
    replica: RedisServer,
    name: Name,
}

impl Pair {
    async fn start(from: ServerKind, to: ServerKind) -> Self {
        let args = ["--repl-diskless-sync-delay", "0"];
        let master = from.start(&args);
        let port = master.port.to_string();
        let replica = to.start(&[&["--replicaof", "127.0.0.1", &port], &args[..]].concat());
        let name = Name::of(&master).await;
        let pair = Self { master, replica, name };
        block_in_place(|| wait("the replica to follow", || pair.is_whole()));
        pair
    }
}

fn wait(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

impl Servers for Pair {
    fn url(&self, parameters: &str) -> String {
        self.name.url(parameters)
    }

    async fn fail(&mut self, _: Loss, _: usize) -> Switch {
        let began = Instant::now();
        block_in_place(|| {
            let () = self.master.ask(&cmd("FAILOVER")).unwrap();
            let is_master = || self.replica.info("replication", "role").as_deref() == Some("master");
            wait("the replica to take over", is_master);
        });
        self.name.point_to(&self.replica);
        mem::swap(&mut self.master, &mut self.replica);
        Switch { began, named: Instant::now() }
    }

    fn followers(&self) -> usize {
        self.master.followers()
    }

    fn is_whole(&self) -> bool {
        self.replica.follows(&self.master.port.to_string())
    }
}

async fn hand_over(from: ServerKind, to: ServerKind, times: usize) {
    for wait in [0, 1] {
        let servers = Pair::start(from, to).await;
        let mut fleet = Fleet::start(servers, &format!("buckets=1024&wait_replicas={wait}")).await;
        for _ in 0..times {
            let outcome = fleet.fail(Loss::Command, wait).await;
            outcome.check();
            outcome.check_nothing_is_lost();
            assert_eq!(outcome.resets, 0, "{outcome:#?}");
        }
    }
}

on_each_server! {
    [#[tokio::test(flavor = "multi_thread", worker_threads = 2)]] failover_under_load_loses_nothing;
}

async fn failover_under_load_loses_nothing(kind: ServerKind) {
    hand_over(kind, kind, 2).await;
}

/// The old version cannot replicate from the new one, so this goes in one direction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_of_redis_under_load_loses_nothing() {
    if is_installed() && ServerKind::Redis62.is_installed() {
        hand_over(ServerKind::Redis62, ServerKind::Redis, 1).await;
    }
}
