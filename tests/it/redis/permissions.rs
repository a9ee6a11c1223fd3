//! A Redis user that lacks a permission.

use std::{error::Error, fs, path::Path, sync::Arc, time::Duration};

use redis::cmd;
use sessiond::{
    session::LeaseId,
    storage::{RefusalCause, SessionStorage, StorageError, StorageUrl},
    subject::Start,
};
use tokio::time::timeout;

use super::{
    ROOMY,
    cluster::RedisCluster,
    open,
    refusals::writability_becomes,
    replica::{Held, Replica, create, eventually, keys, run_all},
    server::{RedisServer, ServerKind, is_installed, on_each_server},
};

const PARAMETERS: &str = "buckets=64&partitions=2";

/// Returns the rules of the smallest user in the README, with the password `secret`. The conformance suite runs as this
/// user.
pub(super) fn smallest_user() -> Vec<String> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let (_, rest) = readme.split_once("ACL SETUSER sessiond ").expect("the README documents a user");
    let (rules, _) = rest.split_once("```").unwrap();
    // Tests do not use the default registry name.
    rules.split_whitespace().map(|rule| rule.replace("PASSWORD", "secret").replace("{sessiond:", "{r*:")).collect()
}

/// Commands that every user has, or that only a cluster is sent.
const NOT_MISSED: [&str; 5] = ["auth", "hello", "ping", "cluster|slots", "cluster|keyslot"];

/// Returns the commands of the smallest user, except those in `NOT_MISSED`.
fn commands() -> Vec<String> {
    let rules = smallest_user();
    let commands =
        rules.iter().filter_map(|rule| rule.strip_prefix('+')).filter(|command| !NOT_MISSED.contains(command));
    commands.map(str::to_owned).collect()
}

/// Returns the rules of the smallest user without one command.
fn without(command: &str) -> Vec<String> {
    smallest_user().into_iter().filter(|rule| rule.strip_prefix('+') != Some(command)).collect()
}

impl RedisServer {
    /// Changes a user with rules for ACL SETUSER.
    pub(super) fn set_user(&self, user: &str, rules: &[String]) {
        let () = self.ask(cmd("ACL").arg("SETUSER").arg(user).arg(rules)).unwrap();
    }

    /// Returns the URL of a registry for a user whose password is `secret`.
    pub(super) fn url_for(&self, user: &str, parameters: &str) -> String {
        format!("redis://{user}:secret@127.0.0.1:{}/?{parameters}", self.port)
    }
}

on_each_server! {
    [#[tokio::test]] a_permission_missing_at_startup_is_named;
    [#[tokio::test]] a_revoked_permission_leaves_no_change_half_done;
    [#[tokio::test]] a_revoked_permission_is_noticed_and_named;
}

async fn a_permission_missing_at_startup_is_named(kind: ServerKind) {
    let server = Arc::new(kind.start(&[]));
    run_all(
        commands().into_iter().map(|command| (command.clone(), startup_names_permission(Arc::clone(&server), command))),
    )
    .await;
}

async fn startup_names_permission(server: Arc<RedisServer>, command: String) {
    server.set_user(&command, &without(&command));
    let url: StorageUrl = server.url_for(&command, &format!("registry=r-{command}&{PARAMETERS}")).parse().unwrap();
    let outcome =
        timeout(Duration::from_secs(20), url.open(ROOMY)).await.expect("the start does not wait for permissions");
    let error = outcome.map(drop).expect_err(&command);
    assert!(!error.may_pass(), "{error:?}");
    let error = error.to_string();
    assert!(error.to_lowercase().contains(&command) && !error.contains("secret"), "-{command}: {error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_smallest_user_suffices_on_a_cluster() {
    if !is_installed() {
        return;
    }
    let cluster = RedisCluster::start(0);
    for node in &cluster.nodes {
        node.set_user("smallest", &smallest_user());
        node.set_user("smaller", &without("cluster|slots"));
    }
    let url =
        |user: &str| cluster.url("registry=r&partitions=6&buckets=48").replace("//", &format!("//{user}:secret@"));
    let storage = open(&url("smallest"), ROOMY).await;
    let lease = storage.grant_lease(Duration::from_secs(600), "").await.unwrap();
    storage.create(&keys(0..100), Some(lease)).await.unwrap();
    assert_eq!(storage.revoke_lease(lease).await.unwrap(), 100);
    let smaller: StorageUrl = url("smaller").parse().unwrap();
    let error = smaller.open(ROOMY).await.map(drop).unwrap_err();
    assert!(error.to_string().to_lowercase().contains("cluster|slots") && !error.may_pass(), "{error:?}");
}

/// Either a session is as before the call, or its event is in the log. So an observer holds exactly the sessions that
/// exist.
async fn a_revoked_permission_leaves_no_change_half_done(kind: ServerKind) {
    let server = Arc::new(kind.start(&[]));
    let command = |command: String| (vec![format!("-{command}")], command);
    let mut lost: Vec<(Vec<String>, String)> = commands().into_iter().map(command).collect();
    let all_keys_but =
        |patterns: &[&str]| ["resetkeys"].iter().chain(patterns).map(|rule| (*rule).to_owned()).collect();
    lost.push((all_keys_but(&["~*}:[^l]*", "~*}:l[^o]*"]), "keys of logs".to_owned()));
    lost.push((all_keys_but(&["~*}:[^b]*"]), "keys of buckets".to_owned()));
    let cases = (0..).zip(lost);
    run_all(cases.map(|(number, (rules, lost))| (lost, loses_permissions(Arc::clone(&server), number, rules)))).await;
}

/// No calls are made meanwhile.
async fn a_revoked_permission_is_noticed_and_named(kind: ServerKind) {
    let server = Arc::new(kind.start(&[]));
    let lost = ["xadd", "hsetnx", "zadd", "setbit", "sadd", "unlink", "evalsha"];
    run_all(lost.map(|command| (command.to_owned(), loss_is_noticed(Arc::clone(&server), command)))).await;
}

async fn loss_is_noticed(server: Arc<RedisServer>, command: &str) {
    server.set_user(command, &smallest_user());
    let storage = open(&server.url_for(command, &format!("registry=r-{command}&{PARAMETERS}")), ROOMY).await;
    server.set_user(command, &[format!("-{command}")]);
    writability_becomes(&*storage, Some(RefusalCause::NotPermitted)).await;
    let refusal = storage.writability().refusal().cloned().unwrap();
    assert!(refusal.detail.to_lowercase().contains(command), "-{command}: {refusal:?}");
    server.set_user(command, &[format!("+{command}")]);
    writability_becomes(&*storage, None).await;
}

async fn loses_permissions(server: Arc<RedisServer>, number: usize, lost: Vec<String>) {
    let (user, parameters) = (format!("user{number}"), format!("registry=r{number}&{PARAMETERS}"));
    server.set_user(&user, &smallest_user());
    let a = open(&server.url_for(&user, &parameters), ROOMY).await;
    let b = Replica::start(&server.url(&parameters)).await;
    let mut held = b.watch(Start::Snapshot).await;
    let one = a.grant_lease(Duration::from_secs(600), "one").await.unwrap();
    let other = a.grant_lease(Duration::from_secs(600), "other").await.unwrap();
    let third = b.storage.grant_lease(Duration::from_secs(600), "third").await.unwrap();
    a.create(&keys(0..20), None).await.unwrap();
    a.create(&keys(20..40), Some(one)).await.unwrap();
    a.create(&keys(40..60), Some(other)).await.unwrap();
    held.converges_to(&keys(0..60)).await;

    server.set_user(&user, &lost);
    let calls = [
        ("create", a.create(&keys(60..80), None).await.map(drop)),
        ("create under a lease", a.create(&keys(80..100), Some(one)).await.map(drop)),
        ("create under a lease that is new here", a.create(&keys(100..120), Some(third)).await.map(drop)),
        ("move", a.create(&keys(0..10), Some(one)).await.map(drop)),
        ("destroy", a.destroy(&keys(10..15), None).await.map(drop)),
        ("destroy under a lease", a.destroy(&keys(20..25), Some(one)).await.map(drop)),
        ("grant", a.grant_lease(Duration::from_secs(600), "").await.map(drop)),
        ("keep alive", a.keep_lease_alive(one).await.map(drop)),
        ("revoke", a.revoke_lease(other).await.map(drop)),
        ("has", a.has(&keys(0..10)).await.map(drop)),
    ];
    for (call, outcome) in calls {
        let is_expected = match &outcome {
            Ok(()) => true,
            Err(StorageError::Unavailable(_) | StorageError::Refused(_)) => true,
            Err(_) => false,
        };
        assert!(is_expected, "{lost:?}: {call}: {outcome:?} ({:?})", outcome.as_ref().unwrap_err().source());
    }
    // Every session that exists has its event, and vice versa.
    held.converges_with(&keys(0..200), &b).await;
    b.watch(Start::Snapshot).await.converges_with(&keys(0..200), &b).await;

    server.set_user(&user, &smallest_user());
    works_again(&a, &b, &mut held, [one, other, third]).await;
    assert_eq!(held.resets, [], "{lost:?}");
}

async fn works_again(a: &Arc<dyn SessionStorage>, b: &Replica, held: &mut Held, leases: [LeaseId; 3]) {
    create(&**a, &keys(200..220)).await;
    let there = held.converges_with(&keys(0..220), b).await;
    assert!(there.ends_with(&keys(200..220)));
    // The leases end together with all their sessions.
    for lease in leases {
        let ended = eventually(async || match a.revoke_lease(lease).await {
            Ok(_) | Err(StorageError::UnknownLease(_)) => Some(()),
            Err(_) => None,
        });
        ended.await;
    }
    // The first ten sessions may remain if they were never moved under a lease.
    let leased = [keys(20..60), keys(80..120)].concat();
    eventually(async || b.storage.has(&leased).await.unwrap().iter().all(|exists| !exists).then_some(())).await;
    let left = held.converges_with(&keys(0..220), b).await;
    assert_eq!(b.storage.session_count().await.unwrap(), left.len() as u64);
}
