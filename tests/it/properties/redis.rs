//! The same properties on the Redis storage. Each replica has its own handle, and observers move between replicas.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use sessiond::storage::{SessionStorage, StorageOptions};

use super::{
    Fixture,
    concurrent::{plan, run_plan},
    herd::herd,
    history::{Shape, Step, shape, steps},
    play,
};
use crate::redis::{
    ROOMY,
    cluster::RedisCluster,
    open,
    sentinels::SentinelGroup,
    server::{RedisServer, is_installed},
};

/// The registries of a server or cluster. The last one is in use.
struct Redis {
    url: Box<dyn Fn(&str) -> String + Send + Sync>,
    count: AtomicUsize,
    last: Mutex<String>,
}

impl Redis {
    fn on(url: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self { url: Box::new(url), count: AtomicUsize::new(0), last: Mutex::default() }
    }
}

fn options(shape: &Shape) -> StorageOptions {
    ROOMY.retain_events(shape.storage_events)
}

impl Fixture for Redis {
    const IS_PAUSED: bool = false;

    async fn storage(&self, shape: &Shape) -> Arc<dyn SessionStorage> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let Shape { buckets, partitions, .. } = shape;
        let buckets = buckets.next_multiple_of(*partitions);
        let url = (self.url)(&format!("registry=r{number}&partitions={partitions}&buckets={buckets}"));
        self.last.lock().unwrap().clone_from(&url);
        open(&url, options(shape)).await
    }

    async fn another(&self, _: &Arc<dyn SessionStorage>, shape: &Shape) -> Arc<dyn SessionStorage> {
        let url = self.last.lock().unwrap().clone();
        open(&url, options(shape)).await
    }
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config { cases, max_shrink_iters: 30, failure_persistence: None, ..Config::default() })
}

/// Histories with two or three replicas.
fn histories() -> impl Strategy<Value = (Shape, Vec<Step>)> {
    (shape(), steps(20..80)).prop_map(|(shape, steps)| (Shape { replicas: shape.replicas + 1, ..shape }, steps))
}

fn check_histories(redis: &Redis, cases: u32, histories: impl Strategy<Value = (Shape, Vec<Step>)>) {
    let outcome = runner(cases).run(&histories, |(shape, steps)| {
        let (broken, _) = play(redis, &shape, &steps);
        prop_assert!(broken.is_empty(), "{:#?}", broken);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

fn check_plans(redis: &Redis, cases: u32) {
    let outcome = runner(cases).run(&(plan(), 1..=2usize), |(plan, more)| {
        let plan = plan.with_replicas(1 + more);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let broken = runtime.block_on(run_plan(redis, &plan));
        prop_assert!(broken.is_empty(), "{:#?}", broken);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn streams_over_several_replicas_keep_their_promises() {
    if is_installed() {
        let server = RedisServer::start(&[]);
        check_histories(&Redis::on(move |parameters| server.url(parameters)), 15, histories());
    }
}

#[test]
fn observers_that_share_a_snapshot_keep_their_promises() {
    if is_installed() {
        let server = RedisServer::start(&[]);
        check_histories(&Redis::on(move |parameters| server.url(parameters)), 15, herd());
    }
}

#[test]
fn streams_over_several_replicas_keep_their_promises_under_concurrency() {
    if is_installed() {
        let server = RedisServer::start(&[]);
        check_plans(&Redis::on(move |parameters| server.url(parameters)), 30);
    }
}

#[test]
fn streams_over_replicas_of_a_cluster_keep_their_promises() {
    if is_installed() {
        let cluster = RedisCluster::start(0);
        let redis = Redis::on(move |parameters| cluster.url(parameters));
        check_histories(&redis, 6, histories());
        check_plans(&redis, 12);
    }
}

#[test]
fn streams_over_replicas_of_a_master_behind_sentinel_keep_their_promises() {
    if is_installed() {
        let group = SentinelGroup::start();
        let redis = Redis::on(move |parameters| group.url(parameters));
        check_histories(&redis, 6, histories());
        check_plans(&redis, 12);
    }
}
