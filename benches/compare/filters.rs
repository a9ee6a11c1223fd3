//! Many observers that each watch a few sessions.

use sessiond::proto::{CreateSessionRequest, SubscribeRequest};
use tokio::task::JoinSet;

use super::{
    observer::{from_now, subscribe_all},
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
        &["what is created", "server CPU, us a CreateSession"],
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
    row("sessions that nobody watches", creates(&server, 2_000_000_000).await);
    let mut readers = JoinSet::new();
    for mut connection in connections {
        readers.spawn(async move {
            loop {
                connection.next().await;
            }
        });
    }
    row("sessions that one observer each watches", creates(&server, 0).await);
}

async fn creates(server: &Server, from: i64) -> Taken {
    let body = move |n| {
        framed(&CreateSessionRequest {
            session_id: Some(from + n as i64),
            auth_key_id: 0,
            lease_id: 0,
            ..Default::default()
        })
    };
    Taken::by(server, load(server.address, "/sessiond.v1.SessionService/CreateSession", CALLS, (10, 10), body)).await
}
