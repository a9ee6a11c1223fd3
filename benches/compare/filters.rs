//! Many observers that each watch a few sessions.

use sessiond::proto::{CreateSessionRequest, SubscribeRequest};

use super::{
    grpc::{self, framed, load},
    observer::{Observer, from_now},
    peers,
    process::Server,
    report::Report,
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
    let mut row = |what: &str, us: f64| report.row(&[what.to_owned(), format!("{us:.2}")]);
    row("no observers", creates(&server, 1_000_000_000).await);
    let mut connections = Vec::new();
    for _ in 0..20 {
        connections.push(grpc::connect(server.address).await);
    }
    let mut observers = Vec::new();
    for n in 0..OBSERVERS {
        let session_ids = (n * WATCHED..(n + 1) * WATCHED).collect();
        let request = SubscribeRequest { session_ids, ..from_now() };
        observers.push(Observer::subscribe(&connections[n as usize % connections.len()], &request).await);
    }
    row("sessions that nobody watches", creates(&server, 2_000_000_000).await);
    let readers: Vec<_> = observers
        .into_iter()
        .map(|mut observer| {
            tokio::spawn(async move {
                loop {
                    observer.next().await;
                }
            })
        })
        .collect();
    row("sessions that one observer each watches", creates(&server, 0).await);
    readers.iter().for_each(|reader| reader.abort());
}

async fn creates(server: &Server, from: i64) -> f64 {
    let cpu = server.cpu();
    let body =
        move |n| framed(&CreateSessionRequest { session_id: Some(from + n as i64), auth_key_id: 0, lease_id: 0 });
    load(server.address, "/sessiond.v1.SessionService/CreateSession", CALLS, (10, 10), body).await;
    (server.cpu() - cpu).as_secs_f64() * 1e6 / CALLS as f64
}
