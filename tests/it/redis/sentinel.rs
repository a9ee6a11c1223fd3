//! A registry behind Sentinel.

use std::{fs, path::Path, time::Duration};

use redis::{Client, cmd};
use sessiond::{storage::StorageUrl, subject::Start};
use tokio::{
    task::block_in_place,
    time::{Instant, sleep},
};

use super::{
    ROOMY,
    replica::{Replica, create, eventually, existing_of, keys},
    sentinels::{MASTER, SentinelGroup},
    server::{ServerKind, is_installed, on_each_server},
};

const PARAMETERS: &str = "buckets=64";

/// Returns the rules of the smallest user of the Sentinels in the README, with the password `secret`.
fn listener() -> Vec<String> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let (_, rest) = readme.split_once("ACL SETUSER listener ").expect("the README documents a user");
    let (rules, _) = rest.split_once("```").unwrap();
    rules.split_whitespace().map(|rule| rule.replace("PASSWORD", "secret")).collect()
}

on_each_server! {
    [#[tokio::test(flavor = "multi_thread", worker_threads = 2)]] calls_and_streams_follow_a_failover;
}

async fn calls_and_streams_follow_a_failover(kind: ServerKind) {
    let group = block_in_place(|| SentinelGroup::start_kind(kind, &[], &[]));
    let url = group.url(PARAMETERS);
    let (a, b) = (Replica::start(&url).await, Replica::start(&url).await);
    let mut held = b.watch(Start::Snapshot).await;
    create(&*a.storage, &keys(0..50)).await;
    held.converges_to(&keys(0..50)).await;
    let old = group.master();
    let mut switches = group.switches();
    let () = group.sentinels[0].ask(cmd("SENTINEL").arg("FAILOVER").arg(MASTER)).unwrap();
    let (switched, _) = switches.after(group.servers[old].port).await;
    create(&*a.storage, &keys(50..60)).await;
    let took = Instant::now().into_std() - switched;
    assert!(took < Duration::from_secs(2), "{took:?}");
    held.converges_to(&keys(0..60)).await;
    assert_eq!(held.resets, [], "nothing was lost");
    assert_eq!(existing_of(keys(0..60), &Replica::start(&url).await).await.len(), 60);
}

/// For seconds after a failover by command, the old master still accepts changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demoted_master_is_left_before_its_successor_is_named() {
    if !is_installed() {
        return;
    }
    let group = block_in_place(SentinelGroup::start);
    let a = Replica::start(&group.url(PARAMETERS)).await;
    create(&*a.storage, &keys(0..10)).await;
    let old = group.master();
    let mut switches = group.switches();
    let () = group.sentinels[0].ask(cmd("SENTINEL").arg("FAILOVER").arg(MASTER)).unwrap();
    let (mut n, mut written) = (100, Vec::new());
    let mut switched = None;
    let end = || group.servers[old].ask::<u64>(cmd("HGET").arg("{sessiond:0}:meta").arg("end")).unwrap();
    let began = Instant::now();
    // Calls go on through the whole failover.
    while switched.is_none_or(|(when, _): (std::time::Instant, u64)| when.elapsed() < Duration::from_secs(3)) {
        assert!(began.elapsed() < Duration::from_secs(30));
        if a.storage.create(&keys(n..n + 1), None).await.is_ok() {
            written.extend(keys(n..n + 1));
        }
        n += 1;
        if switched.is_none()
            && let Ok((when, _)) =
                tokio::time::timeout(Duration::from_millis(1), switches.after(group.servers[old].port)).await
        {
            switched = Some((when, end()));
        }
    }
    let role: Vec<redis::Value> = group.servers[old].ask(&cmd("ROLE")).unwrap();
    assert_eq!(role[0], redis::Value::BulkString(b"master".to_vec()), "the old master still accepts changes");
    assert_eq!(switched.map(|(_, end)| end), Some(end()), "it was sent none since its successor was named");
    assert_eq!(existing_of(written.clone(), &a).await, written, "no change was lost");
}

/// A Sentinel that was paused does nothing for half a minute, even if it has begun a failover.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_without_a_successor_blocks_no_call() {
    if !is_installed() {
        return;
    }
    let group = block_in_place(SentinelGroup::start);
    let a = Replica::start(&group.url(PARAMETERS)).await;
    create(&*a.storage, &keys(0..10)).await;
    let (old, paused) = (group.master(), &group.sentinels[1]);
    let mut switches = group.switches();
    paused.signal("STOP");
    sleep(Duration::from_secs(4)).await;
    paused.signal("CONT");
    eventually(|| async { (paused.info("sentinel", "sentinel_tilt").as_deref() == Some("1")).then_some(()) }).await;
    let () = paused.ask(cmd("SENTINEL").arg("FAILOVER").arg(MASTER)).unwrap();
    for n in 10..210 {
        a.storage.create(&keys(n..n + 1), None).await.unwrap();
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(paused.info("sentinel", "sentinel_tilt").as_deref(), Some("1"), "the failover has not gone on yet");
    switches.after(group.servers[old].port).await;
    create(&*a.storage, &keys(210..220)).await;
    assert_eq!(existing_of(keys(0..220), &a).await.len(), 220, "no change was lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_that_do_not_answer_or_are_behind_are_ignored() {
    if !is_installed() {
        return;
    }
    let mut group = block_in_place(SentinelGroup::start);
    let old = group.master();
    // This one names the old master when it continues.
    group.sentinels[0].signal("STOP");
    let a = Replica::start(&group.url(PARAMETERS)).await;
    create(&*a.storage, &keys(0..10)).await;
    let mut switches = group.switches_of(1..3);
    group.servers[old].kill();
    switches.after(group.servers[old].port).await;
    create(&*a.storage, &keys(10..20)).await;
    block_in_place(|| group.servers[old].restart());
    group.sentinels[0].signal("CONT");
    let fresh = Replica::start(&group.url(PARAMETERS)).await;
    assert_eq!(existing_of(keys(0..20), &fresh).await.len(), 20);
    assert_eq!(existing_of(keys(0..20), &a).await.len(), 20);
    // The last Sentinel that answers is enough.
    block_in_place(|| group.wait("the Sentinels to agree", SentinelGroup::is_whole));
    group.sentinels[0].kill();
    group.sentinels[1].kill();
    create(&*a.storage, &keys(20..30)).await;
    assert_eq!(existing_of(keys(0..30), &Replica::start(&group.url(PARAMETERS)).await).await.len(), 30);
    // Without any, the known master stays.
    group.sentinels[2].kill();
    create(&*a.storage, &keys(30..40)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_and_redis_have_separate_passwords() {
    if !is_installed() {
        return;
    }
    let group = block_in_place(|| {
        let group = SentinelGroup::start_kind(ServerKind::Redis, &[], &[]);
        for server in &group.servers {
            server.set("masterauth", "of-redis");
            server.set("requirepass", "of-redis");
        }
        for sentinel in &group.sentinels {
            let () = sentinel.ask(cmd("SENTINEL").arg("SET").arg(MASTER).arg("auth-pass").arg("of-redis")).unwrap();
            sentinel.set_user("listener", &listener());
            let () = sentinel.ask(cmd("ACL").arg("SETUSER").arg("default").arg(">of-sentinel")).unwrap();
        }
        group
    });
    let hosts = group.url("");
    let hosts = hosts.strip_prefix("redis+sentinel://").unwrap();
    let url = |login: &str, parameters: &str| format!("redis+sentinel://{login}{hosts}{PARAMETERS}{parameters}");
    let a = Replica::start(&url(":of-redis@", "&sentinel_password=of-sentinel")).await;
    create(&*a.storage, &keys(0..10)).await;
    let listener = Replica::start(&url(":of-redis@", "&sentinel_username=listener&sentinel_password=secret")).await;
    assert_eq!(existing_of(keys(0..10), &listener).await.len(), 10);
    // The default user's password was needed to find out that the other user may listen.
    let clients: String = Client::open(format!("redis://:of-sentinel@127.0.0.1:{}", group.sentinels[0].port))
        .and_then(|client| cmd("CLIENT").arg("LIST").query(&mut client.get_connection()?))
        .unwrap();
    assert!(clients.lines().any(|client| client.contains("user=listener") && client.contains("psub=1")), "{clients}");
    for (login, parameters, says) in [
        ("", "&sentinel_password=of-sentinel", "write redis://USER:PASSWORD@HOST"),
        (":wrong@", "&sentinel_password=of-sentinel", "password"),
        (":of-redis@", "", "set sentinel_username and sentinel_password"),
        (":of-redis@", "&sentinel_password=wrong", "set sentinel_username and sentinel_password"),
    ] {
        let wrong: StorageUrl = url(login, parameters).parse().unwrap();
        let error = wrong.open(ROOMY).await.unwrap_err();
        assert!(!error.may_pass() && error.to_string().contains(says), "{login} {parameters}: {error}");
        assert!(!error.to_string().contains("of-redis") && !error.to_string().contains("of-sentinel"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_master_is_named() {
    if !is_installed() {
        return;
    }
    let group = block_in_place(SentinelGroup::start);
    let url: StorageUrl = group.url(PARAMETERS).replace("/main?", "/other?").parse().unwrap();
    let error = url.open(ROOMY).await.unwrap_err().to_string();
    assert!(error.contains("no master named other"), "{error}");
}
