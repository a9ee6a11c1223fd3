//! A server that starts before Redis can serve it. It waits if waiting can help, and otherwise reports the problem.

use std::{net::SocketAddr, time::Duration};

use redis::cmd;
use tonic::Code;

use super::server::{RedisServer, ServerKind, is_installed, on_each_server};
use crate::{
    fake::soon,
    program::{Program, fails, get, serve},
    sessions::{batch_create, create, has},
};

/// Waits until `/ready` answers with this status.
async fn wait_for_ready_status(admin: SocketAddr, status: u16) {
    soon(async {
        while get(admin, "/ready").await.status != status {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Asserts that the server is live but not ready.
async fn assert_live_but_not_ready(admin: SocketAddr) {
    for (path, status) in [("/live", 200), ("/ready", 503), ("/metrics", 200)] {
        assert_eq!(get(admin, path).await.status, status, "{path}");
    }
}

/// Asserts that calls fail with an error that clients retry.
async fn assert_calls_unavailable(program: &Program) {
    let request = sessiond::proto::HasSessionRequest { session_id: Some(1), auth_key_id: 0 };
    let status = soon(program.sessions().has_session(request)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}

on_each_server! {
    [#[tokio::test]] the_server_waits_while_redis_loads_its_dump;
    [#[tokio::test]] a_missing_or_wrong_password_fails_the_startup;
}

async fn the_server_waits_while_redis_loads_its_dump(kind: ServerKind) {
    let mut redis = kind.start(&["--rdbcompression", "no"]);
    let url = redis.url("timeout_ms=300&buckets=64");
    let running = Program::start(&["--storage", &url]).await;
    create(&running.sessions(), 0, 1).await;
    let fill = "for n = 1, 100 do redis.call('SET', 'filler' .. n, string.rep('x', 262144)) end";
    let () = redis.ask(cmd("EVAL").arg(fill).arg(0)).unwrap();
    let () = redis.ask(&cmd("SAVE")).unwrap();
    // The delay is in microseconds per key. Every two megabytes Redis answers commands, with an error.
    redis.restart_loading(&["--key-load-delay", "30000"]);
    let started = Program::start_waiting(&["--storage", &url]).await;
    assert_live_but_not_ready(started.admin).await;
    wait_for_ready_status(running.admin, 503).await;
    assert_calls_unavailable(&running).await;
    assert!(redis.is_loading(), "the test needs a slower load");
    for program in [&started.listens().await, &running] {
        wait_for_ready_status(program.admin, 200).await;
        assert!(has(&program.sessions(), 0, 1).await, "the session is in the dump");
        batch_create(&program.sessions(), &[2, 3]).await;
    }
}

async fn a_missing_or_wrong_password_fails_the_startup(kind: ServerKind) {
    let redis = kind.start(&[]);
    redis.set("requirepass", "pa55");
    let place = format!("127.0.0.1:{}/?timeout_ms=300", redis.port);
    for (login, says) in [("", "password"), (":wr0ng@", "password"), ("nobody:wr0ng@", "password")] {
        let (code, stderr) = fails(serve(&["--storage", &format!("redis://{login}{place}")])).await;
        assert_eq!(code, Some(5), "{login}: {stderr}");
        let last = stderr.lines().last().unwrap();
        assert!(last.starts_with("sessiond: ") && last.contains(says), "{login}: {stderr}");
        assert!(!stderr.contains("wr0ng") && !stderr.contains("multibulk"), "{login}: {stderr}");
    }
    let program = Program::start(&["--storage", &format!("redis://:pa55@{place}")]).await;
    batch_create(&program.sessions(), &[1]).await;
}

/// Waiting helps in none of these cases.
#[tokio::test]
async fn foreign_data_fails_the_startup() {
    if !is_installed() {
        return;
    }
    let redis = RedisServer::start(&[]);
    let key = |registry: &str| format!("{{{registry}:0}}:meta");
    let () = redis.ask(cmd("SET").arg(key("text")).arg("x")).unwrap();
    let () = redis.ask(cmd("HSET").arg(key("hash")).arg("some").arg("thing")).unwrap();
    // The keys as version 0.1 wrote them.
    let mut old = cmd("HSET");
    old.arg(key("old")).arg("format").arg("1").arg("id").arg("00000000000000aa").arg("era").arg("00000000000000bb");
    old.arg("hash_key").arg("0".repeat(32)).arg("all_buckets").arg(64).arg("partitions").arg(1).arg("buckets").arg(64);
    old.arg("end").arg(0).arg("count").arg(0).arg("slots").arg(0).arg("ends").arg(0);
    let () = redis.ask(&old).unwrap();
    for (registry, says) in [("text", "not a registry"), ("hash", "not a registry"), ("old", "format")] {
        let (code, stderr) = fails(serve(&["--storage", &redis.url(&format!("registry={registry}"))])).await;
        assert_eq!(code, Some(5), "{registry}: {stderr}");
        assert!(stderr.lines().last().unwrap().contains(says), "{registry}: {stderr}");
    }
    let kept: String = redis.ask(cmd("GET").arg(key("text"))).unwrap();
    assert_eq!(kept, "x");
}

/// A password is set, and connections are cut, while the server runs.
#[tokio::test]
async fn a_password_required_later_is_logged() {
    if !is_installed() {
        return;
    }
    let redis = RedisServer::start(&[]);
    let program = Program::start(&["--storage", &redis.url("timeout_ms=300&buckets=64")]).await;
    batch_create(&program.sessions(), &[1]).await;
    redis.set("requirepass", "pa55");
    let client = redis::Client::open(format!("redis://:pa55@127.0.0.1:{}", redis.port)).unwrap();
    let mut admin = client.get_connection().unwrap();
    let _: i64 =
        cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes").query(&mut admin).unwrap();
    wait_for_ready_status(program.admin, 503).await;
    program.logs("password").await;
    let () = cmd("CONFIG").arg("SET").arg("requirepass").arg("").query(&mut admin).unwrap();
    wait_for_ready_status(program.admin, 200).await;
    assert!(has(&program.sessions(), 0, 1).await);
}
