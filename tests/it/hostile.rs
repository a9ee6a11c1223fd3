//! Peers that break the rules, leave in the midst of things, or do nothing at all. After each the server serves as before
//! and has let go of everything.

use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::Builder;
use http::{Request, StatusCode};
use sessiond::proto::{HasSessionRequest, SubscribeRequest};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::Code;

use crate::{
    fake::soon,
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
        closed_after, frame, headers, start,
    },
    observed::Observed,
    program::Program,
    raw::{Raw, SERVICE, answer, framed, grpc},
    sessions::{batch_create, create, destroy, has},
};

/// More than an attack may leave behind of what it took: what the allocator keeps.
const LEFT_BEHIND: u64 = 64 << 20;

/// The allocator gives memory back within this time, even on a busy machine.
const GIVEN_BACK: Duration = Duration::from_secs(10);

pub(crate) struct Target {
    pub(crate) program: Program,
    open_fds: u64,
    pub(crate) resident: u64,
}

impl Target {
    pub(crate) async fn start(args: &[&str]) -> Self {
        Self::of(Program::start(&[&["--workers", "2"], args].concat()).await).await
    }

    pub(crate) async fn of(program: Program) -> Self {
        // Once it has served, it has opened whatever it keeps.
        let client = program.sessions();
        create(&client, 0, 0).await;
        let open_fds = program.metric("process_open_fds").await - 1;
        drop(client);
        program.metric_comes_to("process_open_fds", open_fds).await;
        let resident = program.metric("process_resident_memory_bytes").await;
        Self { program, open_fds, resident }
    }

    /// It serves new connections, and nothing is left of those that went.
    pub(crate) async fn is_as_before(&self) {
        let client = self.program.sessions();
        assert!(!create(&client, 0, 0).await);
        assert!(create(&client, 7, 7).await && has(&client, 7, 7).await);
        let mut observed = Observed::now(&client).await;
        assert!(destroy(&client, 7, 7).await);
        assert_eq!(observed.events(1).await[0].session_id, 7);
        drop((observed, client));
        self.program.metric_comes_to("sessiond_observers", 0).await;
        self.program.metric_comes_to("process_open_fds", self.open_fds).await;
        let deadline = Instant::now() + GIVEN_BACK;
        loop {
            let grown = self.program.metric("process_resident_memory_bytes").await.saturating_sub(self.resident);
            if grown < LEFT_BEHIND {
                break;
            }
            assert!(Instant::now() < deadline, "{grown} bytes are left behind");
            // A thread gives back what it no longer needs when it has something to do.
            assert!(!create(&self.program.sessions(), 0, 0).await);
        }
        let log = self.program.log();
        assert!(!log.contains("panicked") && !log.contains("\"ERROR\""), "{log}");
    }
}

fn call(name: &str) -> Request<()> {
    grpc(&format!("{SERVICE}/{name}"))
}

fn subscribe() -> Bytes {
    framed(&SubscribeRequest::default())
}

fn has_session() -> Bytes {
    framed(&HasSessionRequest { session_id: Some(0), auth_key_id: 0 })
}

/// Bytes that look like chance and are the same each time.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 33) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[tokio::test]
async fn garbage_ends_its_own_connection() {
    let target = Target::start(&[]).await;
    let addr = target.program.addr;
    for (seed, len) in [(1, 1), (2, 23), (3, 24), (4, 9000), (5, 1 << 20)] {
        closed_after(addr, &noise(seed, len)).await;
        // Frames of chance: their length is read first, and is more than may be.
        closed_after(addr, &[&start()[..], &[0xff; 3], &noise(seed, len.max(64))].concat()).await;
    }
    let broken = [
        [PREFACE, &frame(SETTINGS, 0, 0, &[1, 2, 3])].concat(),
        [PREFACE, &frame(DATA, END_STREAM, 1, b"no headers before")].concat(),
        [&start()[..], &frame(HEADERS, END_HEADERS, 2, &headers("/even"))].concat(),
        [&start()[..], &frame(HEADERS, END_HEADERS, 1, &noise(6, 900))].concat(),
        [&start()[..], &frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])].concat(),
        [&start()[..], &frame(RST_STREAM, 0, 9, &[0; 4])].concat(),
        [&start()[..], &frame(CONTINUATION, END_HEADERS, 1, b"of nothing")].concat(),
    ];
    for bytes in broken {
        assert!(closed_after(addr, &bytes).await > 0, "it says why: {bytes:?}");
    }
    target.is_as_before().await;
}

#[tokio::test]
async fn other_protocols_are_turned_away() {
    let target = Target::start(&[]).await;
    let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &noise(9, 506)].concat();
    let requests: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nhost: sessiond\r\n\r\n",
        b"POST /sessiond.v1.SessionService/HasSession HTTP/1.1\r\nhost: x\r\ncontent-length: 999999\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        &hello,
    ];
    for request in requests {
        closed_after(target.program.addr, request).await;
    }
    target.is_as_before().await;
}

#[tokio::test]
async fn requests_that_are_no_grpc_are_answered_as_http_has_it() {
    let target = Target::start(&[]).await;
    let mut raw = Raw::connect(target.program.addr).await;
    let others = ["", "application/json", "text/grpc", "application/x-protobuf"];
    // Framed as gRPC, with messages that sessiond does not read.
    let other_messages =
        ["application/grpc+json", "application/grpc+json; charset=utf-8", "application/grpc+", "application/grpc-web"];
    for content_type in others.into_iter().chain(other_messages).map(Some).chain([None]) {
        for path in [&*format!("{SERVICE}/HasSession"), "/sessiond.v1.LeaseService/GrantLease", "/", "/x"] {
            let mut request = Request::post(format!("http://sessiond{path}"));
            if let Some(content_type) = content_type {
                request = request.header("content-type", content_type);
            }
            let answer = raw.send(request.body(()).unwrap(), has_session()).await.unwrap();
            assert_eq!(answer.http, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type:?} {path}");
        }
    }
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"] {
        let mut request = call("HasSession");
        *request.method_mut() = method.parse().unwrap();
        // gRPC has no other methods than POST; what counts is that there is an answer.
        let _ = raw.send(request, has_session()).await;
    }
    raw.arrived().await;
    drop(raw);
    target.is_as_before().await;
}

#[tokio::test]
async fn headers_have_a_limit() {
    let target = Target::start(&[]).await;
    for size in [20_000, 1 << 20] {
        let mut raw = Raw::connect(target.program.addr).await;
        let mut request = call("HasSession");
        // In parts, as one that is longer than a frame is no longer one of our limits.
        for part in 0..size / 4000 {
            request.headers_mut().append("x-much", format!("{part}{}", "x".repeat(4000)).parse().unwrap());
        }
        match raw.send(request, has_session()).await {
            Ok(answer) => assert_eq!(answer.http, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            Err(error) => assert!(error.is_reset() || error.is_go_away() || error.is_io(), "{error:?}"),
        }
    }
    // Headers without an end.
    let flood: Vec<u8> = (0..4000).flat_map(|_| frame(CONTINUATION, 0, 1, &[0x40; 1000])).collect();
    closed_after(target.program.addr, &[start(), frame(HEADERS, 0, 1, &headers("/x")), flood].concat()).await;
    target.is_as_before().await;
}

#[tokio::test]
async fn connections_may_be_cut_anywhere() {
    let target = Target::start(&[]).await;
    let path = format!("{SERVICE}/Subscribe");
    let request = frame(HEADERS, END_HEADERS, 1, &headers(&path));
    let whole = [start(), request, frame(DATA, END_STREAM, 1, &subscribe())].concat();
    for end in 0..=whole.len() {
        let mut socket = soon(TcpStream::connect(target.program.addr)).await.unwrap();
        soon(socket.write_all(&whole[..end])).await.unwrap();
        // Every other one by a FIN that the server may answer, and else by a close that resets.
        if end % 2 == 0 {
            soon(socket.shutdown()).await.unwrap();
        }
    }
    target.is_as_before().await;
}

#[tokio::test]
async fn peers_may_leave_in_the_midst_of_requests_and_streams() {
    let target = Target::start(&[]).await;
    let addr = target.program.addr;
    for _ in 0..20 {
        let mut raw = Raw::connect(addr).await;
        let (_response, mut body) = raw.open(call("BatchCreateSessions")).await;
        body.send_data(Bytes::from_static(&[0, 0, 0, 1, 0, 10]), false).unwrap();
        for _ in 0..10 {
            raw.hold(call("Subscribe"), subscribe()).await;
        }
        raw.arrived().await;
        drop(raw);
    }
    let mut streams = Vec::new();
    for _ in 0..20 {
        let mut raw = Raw::connect(addr).await;
        raw.hold(call("Subscribe"), subscribe()).await;
        streams.push(raw);
    }
    target.program.metric_comes_to("sessiond_observers", 20).await;
    // The server is in the midst of writing to them.
    let client = target.program.sessions();
    for part in 0..5 {
        batch_create(&client, &(part * 9000 + 100..(part + 1) * 9000).collect::<Vec<_>>()).await;
    }
    drop((streams, client));
    target.is_as_before().await;
}

/// Calls that are begun and given up at once, by the thousand.
pub(crate) fn storm_of_resets(headers: &[u8], body: &[u8]) -> Vec<u8> {
    let call = |n: u32| {
        let stream = 2 * n + 1;
        let begin = frame(HEADERS, END_HEADERS, stream, headers);
        let body = frame(DATA, END_STREAM, stream, body);
        [begin, body, frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
    };
    (0..2000).flat_map(call).collect()
}

#[tokio::test]
async fn a_storm_of_resets_is_survived() {
    let target = Target::start(&[]).await;
    let storm = storm_of_resets(&headers(&format!("{SERVICE}/Subscribe")), &subscribe());
    for _ in 0..5 {
        let mut socket = soon(TcpStream::connect(target.program.addr)).await.unwrap();
        // The server may have had enough before all is written.
        let _ = soon(socket.write_all(&[&start()[..], &storm].concat())).await;
        // It is not held up for others meanwhile.
        assert!(has(&target.program.sessions(), 0, 0).await);
        drop(socket);
    }
    // In bounds, and one after the other: a client that changes its mind.
    let mut raw = Raw::connect(target.program.addr).await;
    for _ in 0..300 {
        let (response, mut body) = raw.open(call("Subscribe")).await;
        body.send_data(subscribe(), true).unwrap();
        drop(soon(response).await.unwrap());
    }
    raw.arrived().await;
    drop(raw);
    target.is_as_before().await;
}

#[tokio::test]
async fn pings_and_settings_without_end_are_no_burden() {
    let target = Target::start(&[]).await;
    let rss = target.program.metric("process_resident_memory_bytes").await;
    for flood in [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[]), frame(DATA, 0, 1, &[])] {
        let mut socket = soon(TcpStream::connect(target.program.addr)).await.unwrap();
        let begin = frame(HEADERS, END_HEADERS, 1, &headers(&format!("{SERVICE}/HasSession")));
        soon(socket.write_all(&[start(), begin].concat())).await.unwrap();
        let flood = flood.repeat(2000);
        // Nothing is read: the server answers no further than the socket takes, closes, or reads all the same.
        for _ in 0..100 {
            match timeout(Duration::from_millis(200), socket.write_all(&flood)).await {
                Ok(Ok(())) => {}
                _ => break,
            }
        }
        assert!(has(&target.program.sessions(), 0, 0).await);
    }
    let grown = target.program.metric("process_resident_memory_bytes").await.saturating_sub(rss);
    assert!(grown < 64 << 20, "{grown} bytes");
    target.is_as_before().await;
}

#[tokio::test]
async fn a_client_that_never_reads_holds_up_nobody() {
    let target = Target::start(&[]).await;
    let mut stuck = Vec::new();
    for _ in 0..4 {
        let mut raw = Raw::with(target.program.addr, Builder::new().initial_window_size(1 << 30)).await;
        for _ in 0..20 {
            raw.hold(call("Subscribe"), subscribe()).await;
        }
        raw.hang();
        stuck.push(raw);
    }
    let (reader, writer) = (target.program.sessions(), target.program.sessions());
    let mut observed = Observed::now(&reader).await;
    let ids: Vec<i64> = (1..60_000).collect();
    for part in ids.chunks(10_000) {
        batch_create(&writer, part).await;
        assert_eq!(observed.events(part.len()).await.len(), part.len());
    }
    target.program.metric_comes_to("sessiond_observers", 81).await;
    drop((stuck, observed, reader, writer));
    target.is_as_before().await;
}

#[tokio::test]
async fn requests_that_never_end_take_no_more_than_their_own_connection() {
    let target = Target::start(&["--max-streams", "4"]).await;
    let rss = target.program.metric("process_resident_memory_bytes").await;
    let mut half_open = Vec::new();
    for _ in 0..50 {
        let mut raw = Raw::connect(target.program.addr).await;
        let mut bodies = Vec::new();
        for _ in 0..4 {
            let (response, mut body) = raw.open(call("BatchCreateSessions")).await;
            // It says that four megabytes follow, and they do not.
            body.send_data(Bytes::from_static(&[0, 0, 0x40, 0, 0, 10]), false).unwrap();
            bodies.push((response, body));
        }
        half_open.push((raw, bodies));
    }
    assert!(has(&target.program.sessions(), 0, 0).await);
    let grown = target.program.metric("process_resident_memory_bytes").await.saturating_sub(rss);
    assert!(grown < 64 << 20, "{grown} bytes for a promise");
    // What is more than may be is refused before it comes.
    let mut raw = Raw::connect(target.program.addr).await;
    let (response, mut body) = raw.open(call("Subscribe")).await;
    body.send_data(Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff, 1]), false).unwrap();
    let refused = soon(answer(response)).await.unwrap().grpc.unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    drop((half_open, raw, body));
    target.is_as_before().await;
}

#[tokio::test]
async fn connections_over_the_limit_wait_until_one_leaves() {
    let target = Target::start(&["--max-connections", "2"]).await;
    let (first, second, third) = (target.program.sessions(), target.program.sessions(), target.program.sessions());
    assert!(has(&first, 0, 0).await && has(&second, 0, 0).await);
    let waits = tokio::spawn(async move { has(&third, 0, 0).await });
    assert!(has(&first, 0, 0).await);
    assert!(!waits.is_finished());
    drop(second);
    assert!(soon(waits).await.unwrap());
    drop(first);
    target.is_as_before().await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_let_go() {
    let target = Target::start(&["--max-connections", "3"]).await;
    let began = Instant::now();
    let mut silent = Vec::new();
    for said in [&b""[..], b"P", &PREFACE[..23]] {
        let mut socket = soon(TcpStream::connect(target.program.addr)).await.unwrap();
        soon(socket.write_all(said)).await.unwrap();
        silent.push(socket);
    }
    // All places are taken, until they are let go.
    target.is_as_before().await;
    assert!(began.elapsed() >= Duration::from_secs(5), "{:?}: a slow network is given time", began.elapsed());
    for mut socket in silent {
        assert!(matches!(soon(socket.read(&mut [0])).await, Ok(0) | Err(_)));
    }
}

#[tokio::test]
async fn text_that_is_none_is_refused() {
    let target = Target::start(&[]).await;
    let mut raw = Raw::connect(target.program.addr).await;
    // A string field of four bytes that are no UTF-8: the cursor of a subscription, the owner of a lease.
    for (path, field) in [(format!("{SERVICE}/Subscribe"), 2), ("/sessiond.v1.LeaseService/GrantLease".to_owned(), 2)] {
        for bytes in [[0xff, 0xfe, 0x80, 0xc0], [0xed, 0xa0, 0x80, b'a'], [0xf0, 0x9f, 0x92, b'a']] {
            let message = [&[0, 0, 0, 0, 6, field << 3 | 2, 4][..], &bytes].concat();
            let status = raw.send(grpc(&path), message.into()).await.unwrap().grpc.unwrap();
            assert_eq!(status.code(), Code::InvalidArgument, "{path} {status}");
        }
    }
    let mut request = call("HasSession");
    for name in ["authorization", "grpc-timeout", "x-any"] {
        request.headers_mut().insert(name, http::HeaderValue::from_bytes(&[0xff, 0xfe, 0x80]).unwrap());
    }
    assert_eq!(raw.send(request, has_session()).await.unwrap().grpc.unwrap().code(), Code::Ok);
    drop(raw);
    target.is_as_before().await;
}
