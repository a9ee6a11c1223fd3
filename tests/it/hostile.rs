//! Peers that break the protocol, leave in the middle of requests, or do nothing. After each of them, the server must
//! serve new clients and have released all resources.

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

/// The memory that may stay in use after an attack, because the allocator keeps it, is less than this.
const LEFT_BEHIND: u64 = 64 << 20;

/// The allocator returns memory within this time, even on a busy machine.
const GIVEN_BACK: Duration = Duration::from_secs(10);

/// A server under attack, with the resources it used before.
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
        // After the first call, the server has opened every descriptor that it keeps.
        let client = program.sessions();
        create(&client, 0, 0).await;
        let open_fds = program.metric("process_open_fds").await - 1;
        drop(client);
        program.metric_comes_to("process_open_fds", open_fds).await;
        let resident = program.metric("process_resident_memory_bytes").await;
        Self { program, open_fds, resident }
    }

    /// Asserts that the server serves new connections and has released the resources of the closed ones.
    pub(crate) async fn assert_recovered(&self) {
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
            assert!(Instant::now() < deadline, "{grown} bytes are still in use");
            // Threads return unused memory only while they work, so give them some work.
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

/// Returns pseudo-random bytes, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 33) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[tokio::test]
async fn garbage_ends_only_its_own_connection() {
    let target = Target::start(&[]).await;
    let addr = target.program.addr;
    for (seed, len) in [(1, 1), (2, 23), (3, 24), (4, 9000), (5, 1 << 20)] {
        closed_after(addr, &noise(seed, len)).await;
        // Random frames: their length is read first, and is over the limit.
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
        assert!(closed_after(addr, &bytes).await > 0, "the server sends a reason before it closes: {bytes:?}");
    }
    target.assert_recovered().await;
}

#[tokio::test]
async fn connections_with_other_protocols_are_closed() {
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
    target.assert_recovered().await;
}

#[tokio::test]
async fn requests_that_are_not_grpc_get_an_http_status() {
    let target = Target::start(&[]).await;
    let mut raw = Raw::connect(target.program.addr).await;
    let others = ["", "application/json", "text/grpc", "application/x-protobuf"];
    // gRPC framing with message formats that sessiond does not support.
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
        // gRPC only uses POST. Any answer is fine, but there must be one.
        let _ = raw.send(request, has_session()).await;
    }
    raw.arrived().await;
    drop(raw);
    target.assert_recovered().await;
}

#[tokio::test]
async fn oversized_headers_are_refused() {
    let target = Target::start(&[]).await;
    for size in [20_000, 1 << 20] {
        let mut raw = Raw::connect(target.program.addr).await;
        let mut request = call("HasSession");
        // In several headers, because a single one longer than a frame would not test our limit.
        for part in 0..size / 4000 {
            request.headers_mut().append("x-much", format!("{part}{}", "x".repeat(4000)).parse().unwrap());
        }
        match raw.send(request, has_session()).await {
            Ok(answer) => assert_eq!(answer.http, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            Err(error) => assert!(error.is_reset() || error.is_go_away() || error.is_io(), "{error:?}"),
        }
    }
    // A header block that never ends.
    let flood: Vec<u8> = (0..4000).flat_map(|_| frame(CONTINUATION, 0, 1, &[0x40; 1000])).collect();
    closed_after(target.program.addr, &[start(), frame(HEADERS, 0, 1, &headers("/x")), flood].concat()).await;
    target.assert_recovered().await;
}

#[tokio::test]
async fn a_connection_may_be_cut_after_any_byte() {
    let target = Target::start(&[]).await;
    let path = format!("{SERVICE}/Subscribe");
    let request = frame(HEADERS, END_HEADERS, 1, &headers(&path));
    let whole = [start(), request, frame(DATA, END_STREAM, 1, &subscribe())].concat();
    for end in 0..=whole.len() {
        let mut socket = soon(TcpStream::connect(target.program.addr)).await.unwrap();
        soon(socket.write_all(&whole[..end])).await.unwrap();
        // Half of the connections end with a FIN, which the server may answer, the others with a reset.
        if end % 2 == 0 {
            soon(socket.shutdown()).await.unwrap();
        }
    }
    target.assert_recovered().await;
}

#[tokio::test]
async fn peers_may_disconnect_in_the_middle_of_requests_and_streams() {
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
    // The server is writing to the observers when they leave.
    let client = target.program.sessions();
    for part in 0..5 {
        batch_create(&client, &(part * 9000 + 100..(part + 1) * 9000).collect::<Vec<_>>()).await;
    }
    drop((streams, client));
    target.assert_recovered().await;
}

/// Returns thousands of calls, each of which is reset as soon as it is sent.
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
async fn the_server_survives_rapid_stream_resets() {
    let target = Target::start(&[]).await;
    let storm = storm_of_resets(&headers(&format!("{SERVICE}/Subscribe")), &subscribe());
    for _ in 0..5 {
        let mut socket = soon(TcpStream::connect(target.program.addr)).await.unwrap();
        // The server may close the connection before everything is written.
        let _ = soon(socket.write_all(&[&start()[..], &storm].concat())).await;
        // Other clients are served meanwhile.
        assert!(has(&target.program.sessions(), 0, 0).await);
        drop(socket);
    }
    // A well-behaved client may cancel calls one after another.
    let mut raw = Raw::connect(target.program.addr).await;
    for _ in 0..300 {
        let (response, mut body) = raw.open(call("Subscribe")).await;
        body.send_data(subscribe(), true).unwrap();
        drop(soon(response).await.unwrap());
    }
    raw.arrived().await;
    drop(raw);
    target.assert_recovered().await;
}

#[tokio::test]
async fn floods_of_pings_settings_and_empty_frames_take_bounded_memory() {
    let target = Target::start(&[]).await;
    let rss = target.program.metric("process_resident_memory_bytes").await;
    for flood in [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[]), frame(DATA, 0, 1, &[])] {
        let mut socket = soon(TcpStream::connect(target.program.addr)).await.unwrap();
        let begin = frame(HEADERS, END_HEADERS, 1, &headers(&format!("{SERVICE}/HasSession")));
        soon(socket.write_all(&[start(), begin].concat())).await.unwrap();
        let flood = flood.repeat(2000);
        // This peer reads no answers. The server may stop reading when the socket is full, close it, or keep reading.
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
    target.assert_recovered().await;
}

#[tokio::test]
async fn a_client_that_never_reads_does_not_delay_others() {
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
    target.assert_recovered().await;
}

#[tokio::test]
async fn incomplete_requests_take_no_memory_for_their_announced_size() {
    let target = Target::start(&["--max-streams", "4"]).await;
    let rss = target.program.metric("process_resident_memory_bytes").await;
    let mut half_open = Vec::new();
    for _ in 0..50 {
        let mut raw = Raw::connect(target.program.addr).await;
        let mut bodies = Vec::new();
        for _ in 0..4 {
            let (response, mut body) = raw.open(call("BatchCreateSessions")).await;
            // Announces four megabytes that never arrive.
            body.send_data(Bytes::from_static(&[0, 0, 0x40, 0, 0, 10]), false).unwrap();
            bodies.push((response, body));
        }
        half_open.push((raw, bodies));
    }
    assert!(has(&target.program.sessions(), 0, 0).await);
    let grown = target.program.metric("process_resident_memory_bytes").await.saturating_sub(rss);
    assert!(grown < 64 << 20, "{grown} bytes for announced messages");
    // A message over the limit is refused before it arrives.
    let mut raw = Raw::connect(target.program.addr).await;
    let (response, mut body) = raw.open(call("Subscribe")).await;
    body.send_data(Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff, 1]), false).unwrap();
    let refused = soon(answer(response)).await.unwrap().grpc.unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    drop((half_open, raw, body));
    target.assert_recovered().await;
}

#[tokio::test]
async fn connections_over_the_limit_wait_until_another_closes() {
    let target = Target::start(&["--max-connections", "2"]).await;
    let (first, second, third) = (target.program.sessions(), target.program.sessions(), target.program.sessions());
    assert!(has(&first, 0, 0).await && has(&second, 0, 0).await);
    let waits = tokio::spawn(async move { has(&third, 0, 0).await });
    assert!(has(&first, 0, 0).await);
    assert!(!waits.is_finished());
    drop(second);
    assert!(soon(waits).await.unwrap());
    drop(first);
    target.assert_recovered().await;
}

#[tokio::test]
async fn a_silent_connection_is_closed_after_the_handshake_timeout() {
    let target = Target::start(&["--max-connections", "3"]).await;
    let began = Instant::now();
    let mut silent = Vec::new();
    for said in [&b""[..], b"P", &PREFACE[..23]] {
        let mut socket = soon(TcpStream::connect(target.program.addr)).await.unwrap();
        soon(socket.write_all(said)).await.unwrap();
        silent.push(socket);
    }
    // The silent connections use up the limit until the server closes them.
    target.assert_recovered().await;
    assert!(began.elapsed() >= Duration::from_secs(5), "{:?}: too short for a slow network", began.elapsed());
    for mut socket in silent {
        assert!(matches!(soon(socket.read(&mut [0])).await, Ok(0) | Err(_)));
    }
}

#[tokio::test]
async fn strings_that_are_not_utf8_are_refused() {
    let target = Target::start(&[]).await;
    let mut raw = Raw::connect(target.program.addr).await;
    // A string field with four bytes that are not UTF-8: the cursor of a subscription, the owner of a lease.
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
    target.assert_recovered().await;
}
