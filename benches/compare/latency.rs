//! One event at a time: from the answer to the writer until the last observer has it.

use std::time::{Duration, Instant};

use sessiond::proto::CreateSessionRequest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use super::{
    observer::{Observer, from_now},
    peers,
    process::Server,
    report::Report,
    resp::{Subscriber, connect, payload},
    wire::{Wire, framed},
};

const OBSERVERS: usize = 100;
const EVENTS: u64 = 3000;
/// The first ones warm up caches and buffers.
const WARMUP: u64 = 300;

/// A 99th percentile is 27 events: of few rounds it tells which was lucky.
const ROUNDS: usize = 9;

pub(crate) async fn run(report: &mut Report) {
    report.part(
        "One event at a time, 100 observers: from the writer's call to its answer, and from there to the last observer",
        &["server", "answer p50, us", "last observer p50", "last observer p99"],
    );
    let mut best: [Option<Figures>; 2] = Default::default();
    for _ in 0..ROUNDS {
        keep_best(&mut best[0], sessiond().await);
        if let Some(server) = peers::redis() {
            keep_best(&mut best[1], redis(&server).await);
        }
    }
    for (what, best) in ["sessiond", "Redis PUBLISH"].into_iter().zip(best) {
        match best {
            Some(figures) => report.row(&[&[what.to_owned()], &figures.map(|us| format!("{us:.0}"))[..]].concat()),
            None => report.note("Redis is not installed."),
        }
    }
    report.note("The observers' tasks share the cores with the server, in the same way for both.");
}

/// For each event, when the writer had its answer and when the last observer had the event, from the call on.
type Times = Vec<(Duration, Duration)>;

/// The median of the answer, and median and 99th percentile of the last observer after it, in microseconds.
type Figures = [f64; 3];

/// Keeps the figures of the round with the lower 99th percentile.
fn keep_best(best: &mut Option<Figures>, times: Times) {
    let at = |part: fn(&(Duration, Duration)) -> Duration, percent: usize| {
        let mut sorted: Vec<Duration> = times.iter().skip(WARMUP as usize).map(part).collect();
        sorted.sort_unstable();
        sorted[(sorted.len() - 1) * percent / 100].as_secs_f64() * 1e6
    };
    // An observer may have it before the writer has its answer.
    let after = |time: &(Duration, Duration)| time.1.saturating_sub(time.0);
    let figures = [at(|time| time.0, 50), at(after, 50), at(after, 99)];
    if best.is_none_or(|best| figures[2] < best[2]) {
        *best = Some(figures);
    }
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
    let mut writer = Wire::connect(server.address, "/sessiond.v1.SessionService/CreateSession").await;
    let mut times = Times::new();
    for n in 0..EVENTS as i64 {
        let request =
            framed(&CreateSessionRequest { session_id: Some(n), auth_key_id: 0, lease_id: 0, ..Default::default() });
        let started = Instant::now();
        writer.answer(&request).await;
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

async fn redis(server: &Server) -> Times {
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
