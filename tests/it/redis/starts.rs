//! The program starts before Redis can serve it: it waits for what waiting can cure, and says what it cannot.

use std::time::{Duration, Instant};

use redis::cmd;
use tonic::Code;

use super::server::{RedisServer, ServerKind, is_installed, on_each_server};
use crate::{
    fake::soon,
    program::{Program, get, serve},
    sessions::{batch_create, create, has},
};

/// Waits until the program is ready or is not.
async fn ready_comes_to(program: &Program, status: u16) {
    soon(async {
        while get(program.admin, "/ready").await.status != status {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// It runs, is not ready, and answers calls with an error that clients retry.
async fn waits(program: &Program) {
    assert_eq!(get(program.admin, "/live").await.status, 200);
    assert_eq!(get(program.admin, "/ready").await.status, 503);
    assert_eq!(get(program.admin, "/metrics").await.status, 200);
    let request = sessiond::proto::HasSessionRequest { session_id: Some(1), auth_key_id: 0 };
    let status = soon(program.sessions().has_session(request)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}

on_each_server! {
    [#[tokio::test]] a_redis_that_loads_its_dump_is_waited_for;
    [#[tokio::test]] a_password_that_is_missing_or_wrong_ends_the_start;
}

#[tokio::test]
async fn a_redis_that_is_away_at_the_start_is_waited_for() {
    if !is_installed() {
        return;
    }
    let mut redis = RedisServer::start(&[]);
    let url = redis.url("timeout_ms=300&buckets=64");
    redis.kill();
    let program = Program::start(&["--storage", &url]).await;
    waits(&program).await;
    redis.restart();
    ready_comes_to(&program, 200).await;
    batch_create(&program.sessions(), &[1, 2, 3]).await;
    assert!(has(&program.sessions(), 2).await);
}

#[tokio::test]
async fn a_program_that_waits_for_redis_stops_when_it_is_told_to() {
    if !is_installed() {
        return;
    }
    let mut redis = RedisServer::start(&[]);
    let url = redis.url("timeout_ms=300");
    redis.kill();
    let mut program = Program::start(&["--storage", &url]).await;
    waits(&program).await;
    program.signal("TERM").await;
    assert_eq!(program.exit_code().await, Some(0), "{}", program.log());
}

#[tokio::test]
async fn a_program_waits_no_longer_than_it_is_told_to() {
    if !is_installed() {
        return;
    }
    let mut redis = RedisServer::start(&[]);
    let url = redis.url("timeout_ms=300");
    redis.kill();
    let began = Instant::now();
    let (code, stderr) = fails(&["--storage", &url, "--storage-wait", "1s"]).await;
    assert_eq!(code, Some(5), "{stderr}");
    assert!(began.elapsed() >= Duration::from_secs(1), "it gave up after {:?}", began.elapsed());
}

async fn a_redis_that_loads_its_dump_is_waited_for(kind: ServerKind) {
    let mut redis = kind.start(&[]);
    let url = redis.url("timeout_ms=300&buckets=64");
    let running = Program::start(&["--storage", &url]).await;
    create(&running.sessions(), 1).await;
    let fill = "for n = 1, 1000 do redis.call('SET', 'filler' .. n, n) end";
    let () = redis.ask(cmd("EVAL").arg(fill).arg(0)).unwrap();
    let () = redis.ask(&cmd("SAVE")).unwrap();
    // A millisecond or two for each key, between which it answers.
    redis.restart_loading(&["--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024"]);
    let started = Program::start(&["--storage", &url]).await;
    assert!(redis.is_loading(), "the test needs it to be slower");
    waits(&started).await;
    ready_comes_to(&running, 503).await;
    waits(&running).await;
    assert!(redis.is_loading(), "the test needs it to be slower");
    for program in [&started, &running] {
        ready_comes_to(program, 200).await;
        assert!(has(&program.sessions(), 1).await, "Redis has it in its dump");
        batch_create(&program.sessions(), &[2, 3]).await;
    }
}

/// The exit code, and standard error.
async fn fails(args: &[&str]) -> (Option<i32>, String) {
    let ports = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let output = soon(serve(&[&ports, args].concat()).output()).await.unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

async fn a_password_that_is_missing_or_wrong_ends_the_start(kind: ServerKind) {
    let redis = kind.start(&[]);
    redis.set("requirepass", "pa55");
    let place = format!("127.0.0.1:{}/?timeout_ms=300", redis.port);
    for (login, says) in [("", "password"), (":wr0ng@", "password"), ("nobody:wr0ng@", "password")] {
        let (code, stderr) = fails(&["--storage", &format!("redis://{login}{place}")]).await;
        assert_eq!(code, Some(5), "{login}: {stderr}");
        let last = stderr.lines().last().unwrap();
        assert!(last.starts_with("sessiond: ") && last.contains(says), "{login}: {stderr}");
        assert!(!stderr.contains("wr0ng") && !stderr.contains("multibulk"), "{login}: {stderr}");
    }
    let program = Program::start(&["--storage", &format!("redis://:pa55@{place}")]).await;
    batch_create(&program.sessions(), &[1]).await;
}

/// Waiting cures none of these.
#[tokio::test]
async fn data_of_somebody_else_ends_the_start() {
    if !is_installed() {
        return;
    }
    let redis = RedisServer::start(&[]);
    let key = |registry: &str| format!("{{{registry}:0}}:meta");
    let () = redis.ask(cmd("SET").arg(key("text")).arg("x")).unwrap();
    let () = redis.ask(cmd("HSET").arg(key("hash")).arg("some").arg("thing")).unwrap();
    // As version 0.1 wrote it.
    let mut old = cmd("HSET");
    old.arg(key("old")).arg("format").arg("1").arg("id").arg("00000000000000aa").arg("era").arg("00000000000000bb");
    old.arg("hash_key").arg("0".repeat(32)).arg("all_buckets").arg(64).arg("partitions").arg(1).arg("buckets").arg(64);
    old.arg("end").arg(0).arg("count").arg(0).arg("slots").arg(0).arg("ends").arg(0);
    let () = redis.ask(&old).unwrap();
    for (registry, says) in [("text", "not a registry"), ("hash", "not a registry"), ("old", "format")] {
        let (code, stderr) = fails(&["--storage", &redis.url(&format!("registry={registry}"))]).await;
        assert_eq!(code, Some(5), "{registry}: {stderr}");
        assert!(stderr.lines().last().unwrap().contains(says), "{registry}: {stderr}");
    }
    let kept: String = redis.ask(cmd("GET").arg(key("text"))).unwrap();
    assert_eq!(kept, "x");
}

/// A password is set while the program runs, and its connections end.
#[tokio::test]
async fn a_password_that_is_missing_later_is_logged_as_such() {
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
    ready_comes_to(&program, 503).await;
    program.logs("password").await;
    let () = cmd("CONFIG").arg("SET").arg("requirepass").arg("").query(&mut admin).unwrap();
    ready_comes_to(&program, 200).await;
    assert!(has(&program.sessions(), 1).await);
}
