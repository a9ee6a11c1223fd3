//! Observers that never read: ten thousand, and a few with much to read.

use std::time::{Duration, Instant};

use h2::client::Builder;
use sessiond::proto::{CreateSessionRequest, SubscribeRequest};
use tokio::time::sleep;

use crate::{
    fake::soon,
    observed::{Observed, created_ids, from_snapshot},
    program::Program,
    raw::{Raw, SERVICE, framed, grpc},
    server::Sessions,
    sessions::batch_create,
};

const CONNECTIONS: usize = 10;
const STREAMS: usize = 1000;

const CREATES: i64 = 2000;
const AT_ONCE: i64 = 16;

/// Far more events than the server buffers for a stream, so that every stream is stuck. The messages of these batches
/// are small enough to be copied together, which costs the most memory for each observer.
const BATCHES: i64 = 25;
const BATCH: i64 = 160;

/// Creates sessions from `first` on. Returns how long it took.
async fn create_many(client: &Sessions, first: i64) -> Duration {
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..AT_ONCE {
        let mut client = client.clone();
        tasks.spawn(async move {
            for id in (first + n..first + CREATES).step_by(AT_ONCE as usize) {
                let request = CreateSessionRequest { session_id: Some(id), ..Default::default() };
                assert!(soon(client.create_session(request)).await.unwrap().into_inner().created);
            }
        });
    }
    tasks.join_all().await;
    began.elapsed()
}

async fn stuck_connection(program: &Program, windows: &Builder) -> Raw {
    let mut raw = Raw::with(program.addr, windows).await;
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let request = grpc(&format!("{SERVICE}/Subscribe"));
        streams.push(raw.begin(request, framed(&SubscribeRequest::default())).await.unwrap());
    }
    for stream in streams {
        raw.held.push(soon(stream).await.unwrap());
    }
    raw.hang();
    raw
}

async fn rss(program: &Program) -> u64 {
    program.metric("process_resident_memory_bytes").await
}

#[tokio::test]
async fn observers_that_never_read_take_bounded_memory_and_do_not_slow_down_writers() {
    let limits = ["--workers", "2", "--retain-events", "5000", "--retain-bytes", "1000000"];
    let program = Program::start(&limits).await;
    let writer = program.sessions();
    let warm_up = create_many(&writer, 1_000_000).await;
    let alone = create_many(&writer, 0).await;
    let (rss_before, fds_before) = (rss(&program).await, program.metric("process_open_fds").await);

    // Flow control allows everything, so only the server's own limits hold back what it sends.
    let mut windows = Builder::new();
    windows.initial_window_size(1 << 30).initial_connection_window_size(1 << 30);
    let began = Instant::now();
    let connections = (0..CONNECTIONS).map(|_| stuck_connection(&program, &windows));
    let stuck = futures_util::future::join_all(connections).await;
    let subscribing = began.elapsed();
    assert_eq!(program.metric("sessiond_observers").await, (CONNECTIONS * STREAMS) as u64);
    let rss_subscribed = rss(&program).await;

    let began = Instant::now();
    for batch in 0..BATCHES {
        let first = 2_000_000 + batch * BATCH;
        batch_create(&writer, &(first..first + BATCH).collect::<Vec<_>>()).await;
    }
    let filling = began.elapsed();
    let mut healthy = Observed::now(&program.sessions()).await;
    let beside = create_many(&writer, 3_000_000).await;
    let mut received = created_ids(&healthy.events(CREATES as usize).await);
    received.sort_unstable();
    assert!(received.into_iter().eq(3_000_000..3_000_000 + CREATES), "an observer that reads receives every event");
    let rss_stuck = rss(&program).await;

    println!("{CREATES} creates: warm-up {warm_up:?}, alone {alone:?}, beside stuck observers {beside:?}");
    println!("subscribing {subscribing:?}, filling {filling:?}");
    println!("resident: {rss_before} alone, {rss_subscribed} subscribed, {rss_stuck} stuck");
    // Generous, for busy machines: a writer that waited for each observer would take a hundred times longer.
    assert!(beside < alone * 5 + Duration::from_secs(1), "{beside:?}, and {alone:?} alone");
    let each = (rss_stuck - rss_before) / (CONNECTIONS * STREAMS) as u64;
    assert!(each < 80 << 10, "{each} bytes for each observer");

    // The log is bounded although the stuck observers have not read it. More changes cost no more memory for them.
    for part in 0..4 {
        let first = 4_000_000 + part * 50_000;
        batch_create(&writer, &(first..first + 50_000).collect::<Vec<_>>()).await;
    }
    assert!(program.metric("sessiond_log_retained_events").await <= 5000);
    assert!(program.metric("sessiond_log_retained_bytes").await <= 1_000_000);
    let grown = rss(&program).await.saturating_sub(rss_stuck);
    assert!(grown < 96 << 20, "{grown} bytes is more than 200,000 sessions need");

    drop((stuck, healthy));
    program.metric_comes_to("sessiond_observers", 0).await;
    program.metric_comes_to("process_open_fds", fds_before).await;
}

#[tokio::test]
async fn a_peer_that_stops_reading_takes_no_processor_time() {
    let program = Program::start(&["--workers", "2"]).await;
    for part in 0..8 {
        let first = part * 50_000;
        batch_create(&program.sessions(), &(first..first + 50_000).collect::<Vec<_>>()).await;
    }
    // Far more than the sockets buffer.
    let mut windows = Builder::new();
    windows.initial_window_size(1 << 30).initial_connection_window_size(1 << 30);
    let mut peer = Raw::with(program.addr, &windows).await;
    for _ in 0..8 {
        peer.hold(grpc(&format!("{SERVICE}/Subscribe")), framed(&from_snapshot())).await;
    }
    peer.hang();
    // Until the sockets are full, the server writes to them.
    soon(async {
        loop {
            let before = program.cpu().await;
            sleep(Duration::from_secs(1)).await;
            if program.cpu().await - before < 0.2 {
                break;
            }
        }
    })
    .await;
}
