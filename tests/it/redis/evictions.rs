//! A Redis that may evict keys when it is full. Evicted sessions disappear without an event.

use super::server::{RedisServer, is_installed};
use crate::{program::Program, server::eventually};

const METRIC: &str = "sessiond_storage_evicts_keys";

/// Returns the logged warnings about the eviction policy.
fn warnings(program: &Program) -> Vec<String> {
    let log = program.log();
    let is_about_it = |line: &&str| line.contains("\"WARN\"") && line.contains("maxmemory-policy");
    log.lines().filter(is_about_it).map(str::to_owned).collect()
}

#[tokio::test]
async fn an_evicting_policy_is_warned_about_at_startup() {
    if !is_installed() {
        return;
    }
    for policy in ["allkeys-lru", "volatile-ttl"] {
        let redis = RedisServer::start(&["--maxmemory-policy", policy]);
        let program = Program::start(&["--storage", &redis.url("buckets=64")]).await;
        program.metric_comes_to(METRIC, 1).await;
        program.logs("maxmemory-policy").await;
        let warnings = warnings(&program);
        let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
        assert!(warning.contains(policy) && warning.contains("noeviction"), "{warning}");
    }
}

#[tokio::test]
async fn a_changed_eviction_policy_is_noticed() {
    if !is_installed() {
        return;
    }
    let redis = RedisServer::start(&["--maxmemory-policy", "noeviction"]);
    let program = Program::start(&["--storage", &redis.url("buckets=64")]).await;
    assert_eq!(program.metric(METRIC).await, 0);
    redis.set("maxmemory-policy", "allkeys-random");
    program.metric_comes_to(METRIC, 1).await;
    eventually("the warning", || !warnings(&program).is_empty()).await;
    redis.set("maxmemory-policy", "noeviction");
    program.metric_comes_to(METRIC, 0).await;
    let warnings = warnings(&program);
    assert!(warnings.len() == 1 && warnings[0].contains("allkeys-random"), "{warnings:?}");
}
