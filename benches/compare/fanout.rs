//! One writer, many observers, as fast as they can take it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sessiond::proto::BatchCreateSessionsRequest;
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::Notify, task::JoinSet};

use super::{
    grpc::{self, call, framed},
    observer::{Observer, from_now},
    peers,
    process::{Server, own_cpu},
    report::Report,
    resp::{Subscriber, connect, payload},
};

/// So many messages are published at once, and the writer waits while the slowest observer is further behind than
/// `WINDOW`: no server has to drop anything, and none is idle.
const BATCH: u64 = 1000;
const WINDOW: u64 = 100_000;

pub(crate) async fn run(report: &mut Report) {
    for (observers, events) in [(100, 1_000_000), (1000, 200_000)] {
        report.part(
            &format!("Fan-out at saturation, {observers} observers with a connection each, order checked"),
            &["server", "deliveries a second of server CPU", "sessiond is", "deliveries a second", "loader's CPU"],
        );
        let ours = sessiond(observers, events).await;
        ours.row(report, "sessiond", &ours);
        // The peers are slower: fewer events measure as well.
        let events = events / 10;
        match peers::redis() {
            Some(server) => redis(&server, observers, events).await.row(report, "Redis PUBLISH", &ours),
            None => report.note("Redis is not installed."),
        }
        match peers::nats() {
            Some(server) => nats(&server, observers, events).await.row(report, "NATS PUB", &ours),
            None => report.note("NATS is not installed."),
        }
    }
}

struct Rate {
    a_cpu_second: f64,
    a_second: f64,
    loader: f64,
}

impl Rate {
    fn row(&self, report: &mut Report, what: &str, ours: &Self) {
        report.row(&[
            what.to_owned(),
            format!("{:.1} M", self.a_cpu_second / 1e6),
            format!("{:.1}x", ours.a_cpu_second / self.a_cpu_second),
            format!("{:.1} M", self.a_second / 1e6),
            format!("{:.0}%", self.loader * 100.0),
        ]);
    }
}

/// How far the slowest of some observers has come.
struct Progress {
    each: Vec<AtomicU64>,
    moved: Notify,
}

impl Progress {
    fn new(observers: u64) -> Arc<Self> {
        Arc::new(Self { each: (0..observers).map(|_| AtomicU64::new(0)).collect(), moved: Notify::new() })
    }

    fn set(&self, observer: usize, to: u64) {
        self.each[observer].store(to, Ordering::Relaxed);
        self.moved.notify_one();
    }

    async fn wait(&self, sent: u64) {
        while self.each.iter().any(|one| one.load(Ordering::Relaxed) + WINDOW < sent) {
            self.moved.notified().await;
        }
    }
}

async fn measure(server: &Server, deliveries: u64, work: impl Future<Output = ()>) -> Rate {
    let (cpu, own, started) = (server.cpu(), own_cpu(), Instant::now());
    work.await;
    let seconds = |duration: Duration| duration.as_secs_f64();
    let wall = seconds(started.elapsed());
    Rate {
        a_cpu_second: deliveries as f64 / seconds(server.cpu() - cpu),
        a_second: deliveries as f64 / wall,
        loader: seconds(own_cpu() - own) / wall,
    }
}

async fn sessiond(observers: u64, events: u64) -> Rate {
    let server = peers::sessiond(&[]);
    warm_up(server.address).await;
    let progress = Progress::new(observers);
    let mut tasks = JoinSet::new();
    for n in 0..observers as usize {
        let mut observer = Observer::connect(server.address, &from_now()).await;
        let progress = Arc::clone(&progress);
        tasks.spawn(async move {
            observer.expect_in_order(0, events as i64 - 1, |next| progress.set(n, next as u64)).await;
        });
    }
    let mut writer = grpc::connect(server.address).await;
    measure(&server, observers * events, async {
        for first in (0..events).step_by(BATCH as usize) {
            progress.wait(first).await;
            let session_ids = (first..first + BATCH).map(|n| n as i64).collect();
            let request = BatchCreateSessionsRequest { session_ids, auth_key_ids: vec![], lease_id: 0 };
            call(&mut writer, "/sessiond.v1.SessionService/BatchCreateSessions", framed(&request)).await;
        }
        finish(tasks).await;
    })
    .await
}

/// Fills the log, so that what is measured is a server that has run for a while: its memory is not new any more.
async fn warm_up(address: SocketAddr) {
    const CHANGES: u64 = 1_100_000;
    let ids = |n: u64| (0..BATCH).map(|i| -((n * BATCH + i) as i64) - 1).collect();
    let create =
        move |n| framed(&BatchCreateSessionsRequest { session_ids: ids(n), auth_key_ids: vec![], lease_id: 0 });
    let path = "/sessiond.v1.SessionService/BatchCreateSessions";
    grpc::load(address, path, CHANGES / BATCH, (2, 1), create).await;
}

async fn finish(mut tasks: JoinSet<()>) {
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
}

async fn redis(server: &Server, observers: u64, events: u64) -> Rate {
    let subscribe = async || Subscriber::connect(server.address, "SUBSCRIBE c\r\n", "subscribe").await;
    let writer = connect(server.address, "").await;
    published(server, observers, events, subscribe, writer, |n| format!("PUBLISH c {}\r\n", payload(n))).await
}

async fn nats(server: &Server, observers: u64, events: u64) -> Rate {
    const CONNECT: &str = "CONNECT {\"verbose\":false,\"pedantic\":false}\r\n";
    let hello = format!("{CONNECT}SUB c 1\r\nPING\r\n");
    let subscribe = async || Subscriber::connect(server.address, &hello, "PONG").await;
    let writer = connect(server.address, CONNECT).await;
    published(server, observers, events, subscribe, writer, |n| format!("PUB c 18\r\n{}\r\n", payload(n))).await
}

async fn published(
    server: &Server,
    observers: u64,
    events: u64,
    subscribe: impl AsyncFn() -> Subscriber,
    writer: TcpStream,
    command: impl Fn(u64) -> String,
) -> Rate {
    let progress = Progress::new(observers);
    let mut tasks = JoinSet::new();
    for n in 0..observers as usize {
        let mut subscriber = subscribe().await;
        let progress = Arc::clone(&progress);
        tasks.spawn(async move {
            subscriber.expect_in_order(0, events - 1, |next| progress.set(n, next)).await;
        });
    }
    let (mut answers, mut writer) = writer.into_split();
    // The answers are read and thrown away, so that the server can go on.
    let drain = tokio::spawn(async move { tokio::io::copy(&mut answers, &mut tokio::io::sink()).await });
    let rate = measure(server, observers * events, async {
        for first in (0..events).step_by(BATCH as usize) {
            progress.wait(first).await;
            let commands: String = (first..first + BATCH).map(&command).collect();
            writer.write_all(commands.as_bytes()).await.unwrap();
        }
        finish(tasks).await;
    })
    .await;
    drain.abort();
    rate
}
