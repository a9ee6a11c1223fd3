//! Redis over TLS.

use redis::cmd;
use sessiond::proto::CreateSessionRequest;

use super::server::{RedisServer, ServerKind, free_port, is_installed};
use crate::{
    certificates::{Authority, text},
    fake::soon,
    observed::{Observed, created_ids},
    program::{Program, fails, serve},
    sessions::{batch_create, create, has},
};

/// Starts `sessiond serve` with the trusted roots in a file. The start must fail. Returns the reason.
async fn startup_error(trusted: &str, storage: &str) -> String {
    let mut command = serve(&["--storage", storage, "--storage-wait", "0"]);
    command.env("SSL_CERT_FILE", trusted);
    let (code, stderr) = fails(command).await;
    assert_eq!(code, Some(5), "{stderr}");
    stderr
}

#[tokio::test]
async fn replicas_share_a_registry_over_tls_and_reject_untrusted_servers() {
    if !is_installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new(folder.path(), "ca"), Authority::new(folder.path(), "other"));
    let issued = authority.issue("redis", &["127.0.0.1"]);
    let port = free_port().to_string();
    let tls = ["--tls-port", &port, "--tls-auth-clients", "no", "--tls-ca-cert-file", text(&authority.ca)];
    let certificate = ["--tls-cert-file", text(&issued.cert), "--tls-key-file", text(&issued.key)];
    let redis = RedisServer::start(&[&tls[..], &certificate].concat());
    let storage = format!("rediss://127.0.0.1:{port}/?timeout_ms=500");

    let trust = format!("SSL_CERT_FILE={}", authority.ca.display());
    let mut programs = Vec::new();
    for _ in 0..2 {
        programs.push(Program::start_within(&["env", &trust], &["--storage", &storage]).await);
    }
    let (a, b) = (programs[0].sessions(), programs[1].sessions());
    let mut observed = Observed::now(&b).await;
    assert!(create(&a, 0, 1).await && has(&b, 0, 1).await);
    assert_eq!(created_ids(&observed.events(1).await), [1]);
    // More data than fits into one TLS record, in both directions.
    let ids: Vec<i64> = (10..20_000).collect();
    batch_create(&a, &ids).await;
    assert_eq!(created_ids(&observed.events(ids.len()).await), ids);
    // Cut connections are replaced.
    let cut: i64 = redis.ask(cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes")).unwrap();
    assert!(cut >= 2, "both replicas were connected");
    let again = CreateSessionRequest { session_id: Some(2), ..Default::default() };
    soon(async { while a.clone().create_session(again).await.is_err() {} }).await;
    assert_eq!(created_ids(&observed.events(1).await), [2]);

    let stranger = startup_error(text(&other.ca), &storage).await;
    assert!(stranger.contains("UnknownIssuer"), "{stranger}");
    // If only one side speaks TLS, neither waits forever.
    startup_error(text(&authority.ca), &storage.replace("rediss:", "redis:")).await;
    startup_error(text(&authority.ca), &redis.url("timeout_ms=500").replace("redis:", "rediss:")).await;
}

#[tokio::test]
async fn sentinels_and_their_master_are_reached_over_tls() {
    if !is_installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "ca");
    let issued = authority.issue("redis", &["127.0.0.1"]);
    let tls = ["--tls-auth-clients", "no", "--tls-ca-cert-file", text(&authority.ca), "--tls-replication", "yes"];
    let certificate = ["--tls-cert-file", text(&issued.cert), "--tls-key-file", text(&issued.key)];
    let tls = [&tls[..], &certificate].concat();
    let (port, sentinel_port) = (free_port().to_string(), free_port().to_string());
    let _redis = RedisServer::start(&[&tls[..], &["--tls-port", &port]].concat());
    let configuration = format!("sentinel monitor main 127.0.0.1 {port} 1\n");
    let args = [&tls[..], &["--tls-port", &sentinel_port]].concat();
    let _sentinel = RedisServer::start_sentinel(ServerKind::Redis, &configuration, &args);

    let trust = format!("SSL_CERT_FILE={}", authority.ca.display());
    let storage = format!("rediss+sentinel://127.0.0.1:{sentinel_port}/main");
    let program = Program::start_within(&["env", &trust], &["--storage", &storage]).await;
    assert!(create(&program.sessions(), 0, 1).await && has(&program.sessions(), 0, 1).await);
}
