//! A snapshot of many sessions to one observer.

use std::time::Instant;

use sessiond::proto::{BatchCreateSessionsRequest, subscribe_response::Body};

use super::{
    observer::{Observer, from_snapshot},
    peers,
    report::Report,
    wire::{framed, load},
};

const SESSIONS: u64 = 10_000_000;
const BATCH: u64 = 1000;

pub(crate) async fn run(report: &mut Report) {
    report.part(
        "A snapshot of 10 million sessions to one observer",
        &["sessions per second", "sessions per second of server CPU", "server memory per session, bytes"],
    );
    let server = peers::sessiond(&[]);
    let before = server.resident();
    let ids = |n: u64| (0..BATCH).map(|i| (n * BATCH + i) as i64).collect();
    let body = move |n| {
        framed(&BatchCreateSessionsRequest {
            session_ids: ids(n),
            auth_key_ids: vec![],
            lease_id: 0,
            ..Default::default()
        })
    };
    load(server.address, "/sessiond.v1.SessionService/BatchCreateSessions", SESSIONS / BATCH, (4, 1), body).await;
    let bytes = (server.resident() - before) as f64 / SESSIONS as f64;
    let (cpu, started) = (server.cpu(), Instant::now());
    let mut observer = Observer::connect(server.address, &from_snapshot()).await;
    let mut count = 0;
    loop {
        match observer.next().await {
            Body::Snapshot(snapshot) => count += snapshot.sessions.len() as u64,
            Body::Synced(synced) => {
                assert_eq!((count, synced.session_count), (SESSIONS, SESSIONS));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    let per_second = SESSIONS as f64 / started.elapsed().as_secs_f64();
    let per_cpu_second = SESSIONS as f64 / (server.cpu() - cpu).as_secs_f64();
    report.row(&[
        format!("{:.1} M", per_second / 1e6),
        format!("{:.1} M", per_cpu_second / 1e6),
        format!("{bytes:.1} (including the retained events)"),
    ]);
}
