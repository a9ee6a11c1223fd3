//! How a server drains and stops.

use std::{
    collections::HashSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use prost::Message as _;
use sessiond::proto::{
    CreateSessionRequest, HasSessionRequest, HasSessionResponse, SubscribeRequest, subscribe_response::Body,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};
use tonic_types::StatusExt as _;

use crate::{
    fake::soon,
    observed::{Observed, from_snapshot},
    program::{Program, get},
    raw::{Raw, SERVICE, answer, framed, grpc},
    server::{Running, config, eventually},
    sessions::{batch_create, create},
};

fn has_session() -> http::Request<()> {
    grpc(&format!("{SERVICE}/HasSession"))
}

#[tokio::test]
async fn a_drain_lets_calls_finish_and_ends_streams_with_their_cursor() {
    let mut program = Program::start(&["--workers", "2", "--drain-timeout", "1h"]).await;
    batch_create(&program.sessions(), &(0..1000).collect::<Vec<_>>()).await;
    let mut observers = Vec::new();
    let by_id = SubscribeRequest { session_ids: vec![1, 2], ..Default::default() };
    for request in [SubscribeRequest::default(), from_snapshot(), by_id].into_iter().cycle().take(12) {
        observers.push(Observed::start(&program.sessions(), request).await);
    }
    let mut raw = Raw::connect(program.addr).await;
    let (response, mut body) = raw.open(has_session()).await;
    let message = framed(&HasSessionRequest { session_id: Some(5), auth_key_id: 0 });
    body.send_data(message.slice(..7), false).unwrap();
    raw.arrived().await;

    program.signal("TERM").await;
    program.draining().await;
    assert_eq!(get(program.admin, "/live").await.status, 200);
    let refused = soon(TcpStream::connect(program.addr)).await;
    assert!(refused.is_err(), "a draining server accepts no new connections");

    let mut delays = HashSet::new();
    for mut observed in observers {
        let mut last = None;
        let status = loop {
            match observed.try_next().await {
                Ok(body) => last = Some(body),
                Err(status) => break status,
            }
        };
        assert!(matches!(last, Some(Body::Heartbeat(_))), "{last:?}");
        assert!(!observed.cursor.is_empty());
        assert_eq!(status.code(), Code::Unavailable);
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "SERVER_DRAINING");
        delays.insert(details.retry_info().unwrap().retry_delay.unwrap());
    }
    assert!(delays.len() > 1, "all observers would reconnect at the same time: {delays:?}");
    assert!(delays.iter().all(|delay| !delay.is_zero() && *delay <= Duration::from_secs(3)), "{delays:?}");

    body.send_data(message.slice(7..), true).unwrap();
    let answer = soon(answer(response)).await.unwrap();
    assert_eq!(answer.grpc.unwrap().code(), Code::Ok);
    assert!(HasSessionResponse::decode(&answer.body[5..]).unwrap().exists);
    assert_eq!(program.exit_code().await, Some(0));
}

/// Subscribes an observer that then hangs: it reads nothing, not even the end of its stream.
async fn stuck_observer(addr: SocketAddr) -> Raw {
    let mut raw = Raw::connect(addr).await;
    raw.hold(grpc(&format!("{SERVICE}/Subscribe")), framed(&SubscribeRequest::default())).await;
    raw.hang();
    raw
}

#[tokio::test]
async fn a_drain_ends_at_its_timeout_although_an_observer_is_stuck() {
    let mut program = Program::start(&["--drain-timeout", "1s"]).await;
    let _stuck = stuck_observer(program.addr).await;
    let mut other = Observed::now(&program.sessions()).await;
    let began = Instant::now();
    program.signal("INT").await;
    assert!(matches!(other.next().await, Body::Heartbeat(_)), "other observers do not wait for the stuck one");
    assert_eq!(other.try_next().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(program.exit_code().await, Some(0), "{}", program.log());
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}

/// Starts a server that handles SIGHUP even if the tests run under `nohup`, which ignores it.
async fn with_hangup(args: &[&str]) -> Program {
    Program::start_within(&["env", "--default-signal=HUP"], args).await
}

#[tokio::test]
async fn sigterm_sigint_and_sighup_start_a_drain() {
    for signal in ["TERM", "INT", "HUP"] {
        let mut program = with_hangup(&[]).await;
        let mut observed = Observed::now(&program.sessions()).await;
        program.signal(signal).await;
        assert!(matches!(observed.next().await, Body::Heartbeat(_)), "{signal}");
        assert_eq!(observed.try_next().await.unwrap_err().code(), Code::Unavailable, "{signal}");
        assert_eq!(program.exit_code().await, Some(0), "{signal}: {}", program.log());
    }
}

#[tokio::test]
async fn nohup_keeps_a_server_alive_after_its_terminal_closes() {
    let mut program = Program::start_within(&["nohup"], &[]).await;
    program.signal("HUP").await;
    // If the server handled SIGHUP, it would drain now, and SIGTERM as a second signal would make it exit with code 1.
    assert!(create(&program.sessions(), 0, 1).await);
    program.signal("TERM").await;
    assert_eq!(program.exit_code().await, Some(0), "{}", program.log());
}

#[tokio::test]
async fn a_second_signal_exits_immediately() {
    for (first, second) in [("TERM", "TERM"), ("TERM", "INT"), ("INT", "INT"), ("HUP", "TERM"), ("TERM", "HUP")] {
        let mut program = with_hangup(&["--drain-timeout", "1h"]).await;
        let _stuck = stuck_observer(program.addr).await;
        program.signal(first).await;
        program.draining().await;
        program.signal(second).await;
        assert_eq!(program.exit_code().await, Some(1), "{}", program.log());
    }
}

#[tokio::test]
async fn silent_connections_do_not_delay_a_drain() {
    let mut program = Program::start(&["--workers", "2", "--drain-timeout", "1h"]).await;
    let mut silent = Vec::new();
    for said in [&b""[..], b"P", b"PRI * HTTP/2.0"] {
        let mut socket = soon(TcpStream::connect(program.addr)).await.unwrap();
        soon(socket.write_all(said)).await.unwrap();
        silent.push(socket);
    }
    // This connection is accepted after the silent ones.
    create(&program.sessions(), 0, 1).await;
    program.signal("TERM").await;
    assert_eq!(program.exit_code().await, Some(0), "{}", program.log());
}

/// Starts a proxy to the server that can hold back the server's responses. Returns its address and its switch.
async fn gate(to: SocketAddr) -> (SocketAddr, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (open, is_open) = watch::channel(true);
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(to).await.unwrap();
        let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
            (client.into_split(), server.into_split());
        tokio::spawn(async move { drop(tokio::io::copy(&mut from_client, &mut to_server).await) });
        let (mut is_open, mut buffer) = (is_open, [0; 4096]);
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            if is_open.wait_for(|open| *open).await.is_err() || to_client.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    });
    (addr, open)
}

#[tokio::test]
async fn calls_sent_before_the_client_learns_of_the_drain_are_answered() {
    let server = Running::with(config()).await;
    let (addr, open) = gate(server.addr).await;
    let mut raw = Raw::connect(addr).await;
    raw.arrived().await;
    open.send_replace(false);
    let (admin, subject) = (server.admin, server.subject.clone());
    let ended = server.stop();
    soon(async { while get(admin, "/ready").await.status != 503 {} }).await;
    // The client cannot know about the drain yet.
    let subscribe = framed(&SubscribeRequest::default());
    let subscribe = raw.begin(grpc(&format!("{SERVICE}/Subscribe")), subscribe).await.unwrap();
    let check = framed(&HealthCheckRequest::default());
    let check = raw.begin(grpc("/grpc.health.v1.Health/Check"), check).await.unwrap();
    let create = framed(&CreateSessionRequest { session_id: Some(1), ..Default::default() });
    let create = raw.begin(grpc(&format!("{SERVICE}/CreateSession")), create).await.unwrap();
    eventually("the calls reach the server", || subject.stats().retained_events == 1).await;
    open.send_replace(true);

    let refused = soon(answer(subscribe)).await.unwrap().grpc.unwrap();
    assert_eq!(refused.code(), Code::Unavailable);
    let details = refused.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "SERVER_DRAINING");
    assert!(details.retry_info().unwrap().retry_delay.is_some());
    assert_eq!(soon(answer(create)).await.unwrap().grpc.unwrap().code(), Code::Ok);
    let health = soon(answer(check)).await.unwrap();
    assert_eq!(health.grpc.unwrap().code(), Code::Ok);
    let health = HealthCheckResponse::decode(Bytes::from(health.body).slice(5..)).unwrap();
    assert_eq!(health.status(), ServingStatus::NotServing);
    drop(raw);
    soon(ended).await.unwrap().unwrap();
}
