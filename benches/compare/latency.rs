//! One event at a time: from the answer to the writer until the last observer has it.

use std::time::{Duration, Instant};

use sessiond::proto::CreateSessionRequest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use super::{
    grpc::{self, call, framed},
    observer::{Observer, from_now},
    peers,
    report::Report,
    resp::{Subscriber, connect, payload},
};

const OBSERVERS: usize = 100;
const EVENTS: u64 = 3000;
/// The first ones warm up caches and buffers.
const WARMUP: u64 = 300;

pub(crate) async fn run(report: &mut Report) {
    report.part(
        "One event at a time, 100 observers: from the writer's call to its answer, and to the last observer",
        &["server", "answer p50, us", "last observer p50", "last observer p99"],
    );
    row(report, "sessiond", sessiond().await);
    match peers::redis() {
        Some(_) => row(report, "Redis PUBLISH", redis().await),
        None => report.note("Redis is not installed."),
    }
    report.note("The observers' tasks share the cores with the server, in the same way for both.");
}

/// For each event, when the writer had its answer and when the last observer had the event, from the call on.
type Times = Vec<(Duration, Duration)>;

fn row(report: &mut Report, what: &str, times: Times) {
    let at = |part: fn(&(Duration, Duration)) -> Duration, percent: usize| {
        let mut sorted: Vec<Duration> = times.iter().skip(WARMUP as usize).map(part).collect();
        sorted.sort_unstable();
        format!("{:.0}", sorted[(sorted.len() - 1) * percent / 100].as_secs_f64() * 1e6)
    };
    report.row(&[what.to_owned(), at(|time| time.0, 50), at(|time| time.1, 50), at(|time| time.1, 99)]);
}

async fn sessiond() -> Times {
    let server = peers::sessiond(&[]);
    let (seen, mut all) = mpsc::channel(OBSERVERS);
    for _ in 0..OBSERVERS {
        let (mut observer, seen) = (Observer::connect(server.address, &from_now()).await, seen.clone());
        tokio::spawn(async move {
            for n in 0..EVENTS as i64 {
                observer.expect_in_order(n, n, |_| ()).await;
                seen.send(Instant::now()).await.unwrap();
            }
        });
    }
    let mut writer = grpc::connect(server.address).await;
    let mut times = Times::new();
    for n in 0..EVENTS as i64 {
        let request = framed(&CreateSessionRequest { session_id: Some(n), auth_key_id: 0, lease_id: 0 });
        let started = Instant::now();
        call(&mut writer, "/sessiond.v1.SessionService/CreateSession", request).await;
        let answered = started.elapsed();
        times.push((answered, last(&mut all, started).await));
    }
    times
}

async fn last(all: &mut mpsc::Receiver<Instant>, started: Instant) -> Duration {
    let mut last = started;
    for _ in 0..OBSERVERS {
        last = last.max(all.recv().await.unwrap());
    }
    last - started
}

async fn redis() -> Times {
    let server = peers::redis().unwrap();
    let (seen, mut all) = mpsc::channel(OBSERVERS);
    for _ in 0..OBSERVERS {
        let mut subscriber = Subscriber::connect(server.address, "SUBSCRIBE c\r\n", "subscribe").await;
        let seen = seen.clone();
        tokio::spawn(async move {
            for n in 0..EVENTS {
                subscriber.expect_in_order(n, n, |_| ()).await;
                seen.send(Instant::now()).await.unwrap();
            }
        });
    }
    let mut writer = connect(server.address, "").await;
    let mut times = Times::new();
    let mut answer = [0; 64];
    for n in 0..EVENTS {
        let started = Instant::now();
        writer.write_all(format!("PUBLISH c {}\r\n", payload(n)).as_bytes()).await.unwrap();
        assert!(writer.read(&mut answer).await.unwrap() > 0);
        let answered = started.elapsed();
        times.push((answered, last(&mut all, started).await));
    }
    times
}
