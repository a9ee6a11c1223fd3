//! Three sessiond processes that share one Redis.

use sessiond::{
    client::{Client, WatchOptions, WatchUpdate},
    session::{SessionChange, SessionKey},
};

use super::server::{RedisServer, is_installed};
use crate::{
    fake::soon,
    program::{Program, fails, serve},
};

fn key(n: i64) -> SessionKey {
    SessionKey::new(0, n)
}

fn client(program: &Program) -> Client {
    Client::connect_lazy(&format!("http://{}", program.addr)).unwrap()
}

#[tokio::test]
async fn an_observer_of_a_killed_server_resumes_exactly_on_another() {
    if !is_installed() {
        return;
    }
    let redis = RedisServer::start(&[]);
    let url = redis.url("");
    let mut programs = Vec::new();
    for _ in 0..3 {
        programs.push(Program::start(&["--storage", &url]).await);
    }
    for program in &programs {
        program.metric_comes_to("sessiond_replicas", 3).await;
    }
    let mut clients: Vec<Client> = programs.iter().map(client).collect();
    let mut watch = clients[0].watch(WatchOptions::snapshot());
    while !matches!(soon(watch.next()).await.unwrap(), WatchUpdate::Synced { .. }) {}
    let mut received = Vec::new();
    // Each session is created through one server and looked up through another.
    for n in 0..60 {
        soon(clients[n % 3].create(key(n as i64))).await.unwrap();
        assert!(soon(clients[(n + 1) % 3].has(key(n as i64))).await.unwrap());
        if n == 30 {
            while received.len() < 15 {
                if let WatchUpdate::Events(events) = soon(watch.next()).await.unwrap() {
                    received.extend(events);
                }
            }
            let cursor = watch.cursor().expect("the stream has received events").to_owned();
            // The server is killed, not drained, and started again.
            programs[0].signal("KILL").await;
            programs[0].exit_code().await;
            watch = clients[1].watch(WatchOptions::after(cursor));
            programs[0] = Program::start(&["--storage", &url]).await;
            clients[0] = client(&programs[0]);
        }
    }
    while received.len() < 60 {
        match soon(watch.next()).await.unwrap() {
            WatchUpdate::Events(events) => received.extend(events),
            WatchUpdate::Reset(reason) => panic!("{reason:?}"),
            _ => {}
        }
    }
    let sessions: Vec<_> = received.iter().map(|event| event.session).collect();
    assert!(received.iter().all(|event| event.change == SessionChange::Created));
    assert_eq!(sessions, (0..60).map(key).collect::<Vec<_>>());
    programs[0].metric_comes_to("sessiond_sessions", 60).await;
}

#[tokio::test]
async fn a_redis_outage_shows_in_the_metrics() {
    if !is_installed() {
        return;
    }
    let mut redis = RedisServer::start(&[]);
    let program = Program::start(&["--storage", &redis.url("timeout_ms=300")]).await;
    let client = client(&program);
    assert!(soon(client.create(key(1))).await.unwrap());
    let waits = |operation: &str| format!("sessiond_storage_wait_seconds_count{{operation=\"{operation}\"}}");
    assert_eq!(program.metric(&waits("create")).await, 1);
    let errors =
        |operation: &str| format!("sessiond_storage_errors_total{{operation=\"{operation}\",error=\"unavailable\"}}");
    assert_eq!(program.metric(&errors("destroy")).await, 0);
    redis.kill();
    soon(client.destroy(key(1))).await.unwrap_err();
    assert!(program.metric(&errors("destroy")).await >= 1);
    assert!(program.metric(&waits("destroy")).await >= 1, "the wait of the failed call is counted");
    assert!(program.metric("sessiond_refused_total{reason=\"STORAGE_UNAVAILABLE\"}").await >= 1);
}

#[tokio::test]
async fn an_unreachable_redis_ends_the_start_with_code_5_and_hides_the_password() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("redis://user:s3cret@{unused}/?timeout_ms=200");
    let (code, stderr) = fails(serve(&["--storage", &url, "--storage-wait", "0"])).await;
    assert_eq!(code, Some(5), "{stderr}");
    assert!(stderr.contains("***") && !stderr.contains("s3cret"), "{stderr}");
}
