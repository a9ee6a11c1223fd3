//! How the server reports a Redis that refuses changes: over gRPC, on its admin port, and in its log.

use std::time::Duration;

use sessiond::{proto::CreateSessionRequest, storage::RefusalCause};
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_types::StatusExt as _;

use super::{
    refusals::Trouble,
    server::{RedisServer, is_installed},
};
use crate::{
    fake::soon,
    program::{Program, get},
    server::eventually,
    sessions::{batch_create, has},
};

/// Waits until `/writable` answers with this status and a page that starts with `start`. Returns the page.
async fn wait_for_writable_page(program: &Program, status: u16, start: &str) -> String {
    soon(async {
        loop {
            let page = get(program.admin, "/writable").await;
            if page.status == status && page.body.starts_with(start) {
                return page.body;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

/// Waits until the server is ready.
async fn wait_until_ready(program: &Program) {
    soon(async {
        while get(program.admin, "/ready").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

fn metric(cause: RefusalCause) -> String {
    format!("sessiond_storage_writable{{cause=\"{}\"}}", cause.name())
}

#[tokio::test]
async fn a_redis_that_refuses_changes_is_reported_and_the_server_stays_ready() {
    if !is_installed() {
        return;
    }
    let redis = RedisServer::start(&[]);
    let program = Program::start(&["--storage", &redis.url("buckets=64")]).await;
    batch_create(&program.sessions(), &[1, 2]).await;
    wait_for_writable_page(&program, 200, "writable\n").await;
    let health = Endpoint::from_shared(format!("http://{}", program.addr)).unwrap().connect_lazy();
    let request = HealthCheckRequest { service: "sessiond.v1.SessionService/write".to_owned() };
    let mut health = soon(HealthClient::new(health).watch(request)).await.unwrap().into_inner();
    assert_eq!(soon(health.message()).await.unwrap().unwrap().status(), ServingStatus::Serving);
    for (times, trouble) in (1..).zip([Trouble::OutOfMemory, Trouble::ReadOnly]) {
        let cause = trouble.cause();
        trouble.begin(&redis).await;
        // Redis has just become a replica, so the log has to be read over a new connection.
        let body = wait_for_writable_page(&program, 503, cause.name()).await;
        assert!(body.contains(cause.advice()), "{body}");
        assert_eq!(soon(health.message()).await.unwrap().unwrap().status(), ServingStatus::NotServing);
        assert_eq!(program.metric(&metric(cause)).await, 0);
        assert_eq!(program.metric(&metric(RefusalCause::DiskFull)).await, 1);
        wait_until_ready(&program).await;
        assert!(has(&program.sessions(), 0, 1).await);

        let request = CreateSessionRequest { session_id: Some(3), ..Default::default() };
        let status = soon(program.sessions().create_session(request)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(status.message().contains(&cause.to_string()), "{}", status.message());
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "STORAGE_REFUSES_CHANGES");
        assert!(details.retry_info().is_some());

        trouble.end(&redis).await;
        wait_for_writable_page(&program, 200, "").await;
        assert_eq!(soon(health.message()).await.unwrap().unwrap().status(), ServingStatus::Serving);
        assert_eq!(program.metric(&metric(cause)).await, 1);
        batch_create(&program.sessions(), &[10 + times]).await;
        // One line marks the start of the outage, the other its end.
        let outage = format!("\"cause\":\"{}\"", cause.name());
        eventually("both lines", || program.log().matches(&outage).count() == 2).await;
    }
    assert_eq!(program.log().matches("the storage refuses changes\",\"cause\":\"out_of_memory").count(), 1);
}

/// Without Redis, the registry can be neither changed nor read.
#[tokio::test]
async fn a_server_without_redis_is_neither_ready_nor_writable() {
    if !is_installed() {
        return;
    }
    let mut redis = RedisServer::start(&[]);
    let program = Program::start(&["--storage", &redis.url("timeout_ms=300&buckets=64")]).await;
    redis.kill();
    wait_for_writable_page(&program, 503, "unreachable").await;
    assert_eq!(program.metric(&metric(RefusalCause::Unreachable)).await, 0);
    soon(async {
        while get(program.admin, "/ready").await.status != 503 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    redis.restart();
    wait_for_writable_page(&program, 200, "").await;
    wait_until_ready(&program).await;
}
