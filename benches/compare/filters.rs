//! Many observers that each watch a few sessions or one lease.

use sessiond::proto::{CreateSessionRequest, SubscribeRequest};
use tokio::task::JoinSet;

use super::{
    observer::{Observer, from_now, subscribe_all},
    peers,
    process::{Server, Taken},
    report::Report,
    wire::{framed, load},
};

const OBSERVERS: i64 = 10_000;
const WATCHED: i64 = 10;
const CALLS: u64 = 100_000;

pub(crate) async fn run(report: &mut Report) {
    report.part(
        "10,000 observers that each filter on 10 sessions, on 20 connections",
        &["what is created", "server CPU, us per CreateSession"],
    );
    let server = peers::sessiond(&[]);
    let mut row = |what: &str, taken: Taken| report.measured(what, &taken, &[format!("{:.2}", taken.us_each(CALLS))]);
    row("no observers", creates(&server, 1_000_000_000).await);
    let request = |n| SubscribeRequest { session_ids: (n * WATCHED..(n + 1) * WATCHED).collect(), ..from_now() };
    let mut connections = Vec::new();
    for first in (0..OBSERVERS).step_by(OBSERVERS as usize / 20) {
        let requests: Vec<_> = (first..first + OBSERVERS / 20).map(request).collect();
        connections.push(subscribe_all(server.address, &requests).await);
    }
    row("sessions that no observer watches", creates(&server, 2_000_000_000).await);
    let mut readers = JoinSet::new();
    for mut connection in connections {
        readers.spawn(async move {
            loop {
                connection.next().await;
            }
        });
    }
    row("sessions with one observer each", creates(&server, 0).await);
    by_lease(report).await;
}

/// Measures observers that each watch the sessions under one lease, as gateways do.
async fn by_lease(report: &mut Report) {
    report.part(
        "10,000 observers that each watch one lease, on 20 connections",
        &["what is created", "server CPU, us per CreateSession"],
    );
    let server = peers::sessiond(&[]);
    let mut row = |what: &str, taken: Taken| report.measured(what, &taken, &[format!("{:.2}", taken.us_each(CALLS))]);
    let leases = peers::leases(server.address, OBSERVERS as usize).await;
    let unwatched = peers::leases(server.address, 1).await[0];
    row("sessions under a lease, no observers", creates_under(&server, 0, &[unwatched]).await);
    let mut one =
        Observer::connect(server.address, &SubscribeRequest { lease_ids: vec![unwatched], ..from_now() }).await;
    let reader = tokio::spawn(async move {
        loop {
            one.next().await;
        }
    });
    row("the same, with one observer of that lease", creates_under(&server, 1_000_000_000, &[unwatched]).await);
    reader.abort();
    let mut readers = JoinSet::new();
    for some in leases.chunks(OBSERVERS as usize / 20) {
        let request = |lease: &u64| SubscribeRequest { lease_ids: vec![*lease], ..from_now() };
        let mut connection = subscribe_all(server.address, &some.iter().map(request).collect::<Vec<_>>()).await;
        readers.spawn(async move {
            loop {
                connection.next().await;
            }
        });
    }
    row("sessions under a lease that no observer watches", creates_under(&server, 2_000_000_000, &[unwatched]).await);
    row("sessions under leases with one observer each", creates_under(&server, 3_000_000_000, &leases).await);
}

async fn creates(server: &Server, from: i64) -> Taken {
    creates_under(server, from, &[0]).await
}

/// Creates sessions under these leases in turn.
async fn creates_under(server: &Server, from: i64, leases: &[u64]) -> Taken {
    let leases = leases.to_vec();
    let body = move |n| {
        let lease_id = leases[n as usize % leases.len()];
        framed(&CreateSessionRequest { session_id: Some(from + n as i64), lease_id, ..Default::default() })
    };
    Taken::by(server, load(server.address, "/sessiond.v1.SessionService/CreateSession", CALLS, (10, 10), body)).await
}
