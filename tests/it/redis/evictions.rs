//! A Redis that may evict keys when it is full: what it evicts is gone without an event.

use super::server::{RedisServer, is_installed};
use crate::program::Program;

const METRIC: &str = "sessiond_storage_evicts_keys";

/// The warnings about it.
fn warnings(program: &Program) -> Vec<String> {
    let log = program.log();
    let is_about_it = |line: &&str| line.contains("\"WARN\"") && line.contains("maxmemory-policy");
    log.lines().filter(is_about_it).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_policy_that_evicts_keys_is_warned_of_at_the_start() {
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
async fn a_policy_that_changes_is_noticed_once_each_time() {
    if !is_installed() {
        return;
    }
    let redis = RedisServer::start(&["--maxmemory-policy", "noeviction"]);
    let program = Program::start(&["--storage", &redis.url("buckets=64")]).await;
    assert_eq!(program.metric(METRIC).await, 0);
    for (times, policy) in [(1, "allkeys-random"), (2, "volatile-lfu")] {
        redis.set("maxmemory-policy", policy);
        program.metric_comes_to(METRIC, 1).await;
        crate::server::eventually("the warning", || warnings(&program).len() >= times).await;
        redis.set("maxmemory-policy", "noeviction");
        program.metric_comes_to(METRIC, 0).await;
        let warnings = warnings(&program);
        assert_eq!(warnings.len(), times, "{warnings:?}");
        assert!(warnings[times - 1].contains(policy), "{warnings:?}");
    }
}

/// A user without the right to look at the configuration: nothing is known, so nothing is claimed.
#[tokio::test]
async fn a_policy_that_may_not_be_read_keeps_nobody_from_working() {
    if !is_installed() {
        return;
    }
    let redis = RedisServer::start(&[]);
    let set = |rule: &str| {
        let mut set = redis::cmd("ACL");
        set.arg("SETUSER").arg("app").arg(rule.split(' ').collect::<Vec<_>>());
        let () = redis.ask(&set).unwrap();
    };
    set("on >secret ~* &* +@all -config");
    let url = format!("redis://app:secret@127.0.0.1:{}/?buckets=64", redis.port);
    let program = Program::start(&["--storage", &url]).await;
    crate::sessions::batch_create(&program.sessions(), &[1, 2, 3]).await;
    assert!(warnings(&program).is_empty(), "{}", program.log());
}
