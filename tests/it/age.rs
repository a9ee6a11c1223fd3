//! Connections that reach `--max-connection-age`.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use prost::Message as _;
use sessiond::{
    client::Client,
    proto::{HasSessionRequest, HasSessionResponse, SubscribeRequest, SubscribeResponse, subscribe_response::Body},
    session::SessionKey,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Code, Status, transport::Endpoint};
use tonic_types::StatusExt as _;

use crate::{
    fake::soon,
    frames::{ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PING, frame, headers, start},
    observed::{Observed, created_ids},
    program::Program,
    raw::{Raw, SERVICE, answer, framed, grpc},
    server::Sessions,
    sessions::{batch_create, create},
};

/// Reads a stream to its end. Returns the last message and the status.
async fn end(observed: &mut Observed) -> (Option<Body>, Status) {
    let mut last = None;
    loop {
        match observed.try_next().await {
            Ok(body) => last = Some(body),
            Err(status) => return (last, status),
        }
    }
}

fn assert_too_old(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "CONNECTION_CLOSING");
    assert!(!details.retry_info().unwrap().retry_delay.unwrap().is_zero());
    assert!(status.message().contains("--max-connection-age"), "{status}");
}

#[tokio::test]
async fn a_stream_on_an_old_connection_ends_and_resumes_on_a_new_one() {
    let program = Program::start(&["--max-connection-age", "500ms", "--workers", "2"]).await;
    // The channel reconnects after the server's GOAWAY.
    let channel = Endpoint::from_shared(format!("http://{}", program.addr)).unwrap().connect_lazy();
    let client = Sessions::new(channel);
    let (mut last, mut received) = (None, Vec::new());
    let mut observed = Observed::now(&client).await;
    for round in 0..3 {
        for id in 0..10 {
            create(&client, 0, round * 10 + id).await;
        }
        let (body, status) = loop {
            match observed.try_next().await {
                Ok(Body::Events(body)) => received.extend(created_ids(&body.events)),
                Ok(body) => last = Some(body),
                Err(status) => break (last.take(), status),
            }
        };
        assert!(matches!(body, Some(Body::Heartbeat(_))), "{body:?}");
        assert_too_old(&status);
        // The next stream reports what is created in between.
        create(&client, 0, 1000 + round).await;
        observed = Observed::after(&client, &observed.cursor).await;
    }
    while received.len() < 33 {
        received.extend(created_ids(&observed.more_events().await));
    }
    received.sort_unstable();
    assert_eq!(received, (0..30).chain(1000..1003).collect::<Vec<_>>());
    drop((observed, client));
    program.metric_comes_to("sessiond_connections", 0).await;
}

#[tokio::test]
async fn a_snapshot_on_an_old_connection_is_sent_to_its_end() {
    let program = Program::start(&["--max-connection-age", "300ms"]).await;
    const SESSIONS: i64 = 300_000;
    for part in 0..5 {
        let ids: Vec<_> = (part * SESSIONS / 5..(part + 1) * SESSIONS / 5).collect();
        batch_create(&program.sessions(), &ids).await;
    }
    let mut observed = Observed::snapshot(&program.sessions()).await;
    // The client leaves most of the snapshot unread until long after the maximum age and the grace period.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(observed.synced().await.len() as i64, SESSIONS);
    let (last, status) = end(&mut observed).await;
    assert!(matches!(last, Some(Body::Heartbeat(_))), "{last:?}");
    assert_too_old(&status);
    create(&program.sessions(), 0, -1).await;
    let mut observed = Observed::after(&program.sessions(), &observed.cursor).await;
    assert_eq!(created_ids(&observed.events(1).await), [-1]);
}

#[tokio::test]
async fn calls_on_an_old_connection_finish() {
    let program = Program::start(&["--max-connection-age", "300ms"]).await;
    let mut raw = Raw::connect(program.addr).await;
    let (response, mut body) = raw.open(grpc(&format!("{SERVICE}/HasSession"))).await;
    let message = framed(&HasSessionRequest { session_id: Some(5), auth_key_id: 0 });
    body.send_data(message.slice(..7), false).unwrap();
    // The end of this stream shows that the connection has reached its maximum age.
    let observed =
        raw.begin(grpc(&format!("{SERVICE}/Subscribe")), framed(&SubscribeRequest::default())).await.unwrap();
    let ended = soon(answer(observed)).await.unwrap();
    assert_too_old(&ended.grpc.unwrap());
    let first = SubscribeResponse::decode(&ended.body[5..][..usize::from(ended.body[4])]).unwrap();
    assert!(matches!(first.body, Some(Body::Subscribed(_))), "{first:?}");
    body.send_data(message.slice(7..), true).unwrap();
    let answer = soon(answer(response)).await.unwrap();
    assert_eq!(answer.grpc.unwrap().code(), Code::Ok);
    assert!(!HasSessionResponse::decode(&answer.body[5..]).unwrap().exists);
    // Then the server closes the connection.
    soon(raw.ended()).await;
    program.metric_comes_to("sessiond_connections", 0).await;
}

#[tokio::test]
async fn no_call_of_the_client_fails_when_connections_reach_their_maximum_age() {
    let program = Program::start(&["--max-connection-age", "100ms", "--workers", "2"]).await;
    let calls = (0..8).map(async |auth_key_id| {
        let client = Client::connect_lazy(&format!("http://{}", program.addr)).unwrap();
        let began = Instant::now();
        for id in 0.. {
            assert!(client.create(SessionKey::new(auth_key_id, id)).await.unwrap());
            if began.elapsed() > Duration::from_secs(4) {
                break;
            }
        }
    });
    join_all(calls).await;
}

#[tokio::test]
async fn the_end_of_a_stream_reaches_a_client_that_is_still_sending() {
    let program = Program::start(&["--max-connection-age", "300ms"]).await;
    let mut socket = soon(TcpStream::connect(program.addr)).await.unwrap();
    let call = [
        start(),
        frame(HEADERS, END_HEADERS, 1, &headers(&format!("{SERVICE}/Subscribe"))),
        frame(DATA, END_STREAM, 1, &framed(&SubscribeRequest::default())),
    ];
    soon(socket.write_all(&call.concat())).await.unwrap();
    // The server pings to learn whether its GOAWAY has arrived.
    let payload = loop {
        let mut head = [0; 9];
        soon(socket.read_exact(&mut head)).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        soon(socket.read_exact(&mut payload)).await.unwrap();
        if head[3] == PING && head[4] == 0 {
            break payload;
        }
    };
    soon(socket.write_all(&frame(PING, ACK, 0, &payload))).await.unwrap();
    program.metric_comes_to("sessiond_observers", 0).await;
    // If the server had closed its socket, these frames would reset the connection, and the client would lose the
    // unread trailers.
    for _ in 0..20 {
        soon(socket.write_all(&frame(PING, 0, 0, &[7; 8]))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut rest = Vec::new();
    soon(socket.read_to_end(&mut rest)).await.unwrap();
    let end = &frame(HEADERS, END_HEADERS | END_STREAM, 1, &[])[3..];
    assert!(rest.windows(end.len()).any(|bytes| bytes == end), "the trailers have arrived");
    drop(socket);
    program.metric_comes_to("sessiond_connections", 0).await;
}
