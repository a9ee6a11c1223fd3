//! Fuzzes requests above HTTP/2: a method, a body cut into two frames, and a timeout. Every request is answered without
//! INTERNAL.
#![no_main]

use std::{convert::Infallible, sync::Arc, sync::LazyLock, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use libfuzzer_sys::fuzz_target;
use sessiond::{
    service::{Service, ServiceOptions, WireEncoder},
    storage::memory::{MemoryOptions, MemoryStorage},
    subject::{SessionSubject, SubjectOptions},
};
use tokio::{runtime, time::timeout};

const METHODS: [&str; 14] = [
    "SessionService/HasSession",
    "SessionService/CreateSession",
    "SessionService/DestroySession",
    "SessionService/BatchHasSessions",
    "SessionService/BatchCreateSessions",
    "SessionService/BatchDestroySessions",
    "SessionService/Subscribe",
    "LeaseService/GrantLease",
    "LeaseService/KeepLeaseAlive",
    "LeaseService/RevokeLease",
    "Nonsense",
    "SessionService/LookupSession",
    "SessionService/BatchLookupSessions",
    "LeaseService/ListLeases",
];

/// How many frames of a stream are read: the first message, a snapshot and some of what follows.
const FRAMES: usize = 4;

struct Server {
    runtime: runtime::Runtime,
    service: Service,
}

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let runtime = runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let service = runtime.block_on(async {
        let options = MemoryOptions::default().max_sessions(10_000).max_leases(100);
        let storage = Arc::new(MemoryStorage::new(options));
        let options = SubjectOptions::default().retain_events(1000).retain_bytes(1 << 20);
        let subject = SessionSubject::start(storage, options, WireEncoder).await.expect("a memory storage opens");
        Service::new(Arc::new(subject), ServiceOptions::default())
    });
    Server { runtime, service }
});

fuzz_target!(|input: (u8, u16, &[u8], &str)| {
    let (method, cut, bytes, timeout_header) = input;
    let method = METHODS[usize::from(method) % METHODS.len()];
    let (first, rest) = bytes.split_at(usize::from(cut).min(bytes.len()));
    let frames = [first, rest].map(|part| Ok::<_, Infallible>(http_body::Frame::data(Bytes::copy_from_slice(part))));
    let mut request = Request::post(format!("http://sessiond/sessiond.v1.{method}"))
        .header("content-type", "application/grpc")
        .body(StreamBody::new(tokio_stream::iter(frames)))
        .expect("a request");
    if let Ok(timeout_header) = timeout_header.parse() {
        request.headers_mut().insert("grpc-timeout", timeout_header);
    }
    SERVER.runtime.block_on(async {
        let mut response = SERVER.service.clone().call(request).await;
        assert_eq!(response.status(), StatusCode::OK);
        let mut status = response.headers().get("grpc-status").cloned();
        for _ in 0..FRAMES {
            let Ok(Some(frame)) = timeout(Duration::from_millis(1), response.body_mut().frame()).await else { break };
            if let Some(trailers) = frame.expect("errors come only in trailers").trailers_ref() {
                status = trailers.get("grpc-status").cloned();
            }
        }
        // 13 is INTERNAL, which only a bug in the server causes.
        assert!(status.is_none_or(|status| status != "13"));
    });
});
