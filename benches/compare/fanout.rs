//! Fan-out: one writer and many observers, at the highest rate that the observers can take.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use sessiond::proto::{BatchCreateSessionsRequest, SubscribeRequest};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::JoinSet,
};

use super::{
    floor,
    observer::{Observer, from_now, placements_from_now},
    peers,
    process::{Server, Taken},
    report::Report,
    resp::{Subscriber, connect, payload},
    wire::{Wire, framed, load},
};

/// The writer publishes `BATCH` messages together, and waits while the slowest observer is more than `WINDOW` behind.
/// So no server has to drop messages, and none is idle.
const BATCH: u64 = 1000;
const WINDOW: u64 = 100_000;

/// How many batches the writer has in flight at sessiond. A batch has 8 KB, so these fit HTTP/2's default window. The
/// peers' writers never wait for an answer.
const IN_FLIGHT: u64 = 7;

const CREATE: &str = "/sessiond.v1.SessionService/BatchCreateSessions";

const ROUNDS: usize = 5;

pub(crate) async fn run(report: &mut Report) {
    for (observers, events) in [(100, 500_000), (1000, 100_000)] {
        report.part(
            &format!("Fan-out at saturation, {observers} observers, one per connection, order checked"),
            &["server", "deliveries per second of server CPU", "sessiond is", "deliveries per second"],
        );
        // The peers are slower, so fewer events suffice.
        let peers_events = events / 5;
        let mut best: [Option<Rate>; 5] = Default::default();
        for _ in 0..ROUNDS {
            keep_best(&mut best[0], sessiond(observers, events, from_now()).await);
            keep_best(&mut best[4], sessiond(observers, events, placements_from_now()).await);
            if let Some(server) = peers::redis() {
                keep_best(&mut best[1], redis(&server, observers, peers_events).await);
            }
            if let Some(server) = peers::nats() {
                keep_best(&mut best[2], nats(&server, observers, peers_events).await);
            }
            keep_best(&mut best[3], floor(observers, events).await);
        }
        let ours = best[0].as_ref().map_or(0.0, Rate::per_cpu_second);
        let names =
            ["sessiond", "Redis PUBLISH", "NATS PUB", "bare TCP, order not checked", "sessiond, with placements"];
        for (what, best) in names.into_iter().zip(best) {
            match best {
                Some(best) => best.row(report, what, ours),
                None => report.note(format!("{what}: not installed.")),
            }
        }
        report.note(
            "Bare TCP writes as many bytes to each connection, in large writes, without a registry and without HTTP/2.",
        );
    }
}

struct Rate {
    taken: Taken,
    deliveries: u64,
}

fn keep_best(best: &mut Option<Rate>, rate: Rate) {
    if best.as_ref().is_none_or(|best| rate.per_cpu_second() > best.per_cpu_second()) {
        *best = Some(rate);
    }
}

impl Rate {
    fn per_cpu_second(&self) -> f64 {
        self.deliveries as f64 / self.taken.server.as_secs_f64()
    }

    fn row(&self, report: &mut Report, what: &str, ours: f64) {
        let figures = [
            format!("{:.1} M", self.per_cpu_second() / 1e6),
            format!("{:.1}x", ours / self.per_cpu_second()),
            format!("{:.1} M", self.deliveries as f64 / self.taken.wall.as_secs_f64() / 1e6),
        ];
        report.measured(what, &self.taken, &figures);
    }
}

/// The progress of the observers.
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
    Rate { taken: Taken::by(server, work).await, deliveries }
}

/// Measures sessiond. All sessions are created under a lease, which only streams with placements report.
async fn sessiond(observers: u64, events: u64, request: SubscribeRequest) -> Rate {
    let server = peers::sessiond(&[]);
    let lease_id = peers::leases(server.address, 1).await[0];
    warm_up(server.address).await;
    let progress = Progress::new(observers);
    let mut tasks = JoinSet::new();
    for n in 0..observers as usize {
        let mut observer = Observer::connect(server.address, &request).await;
        let progress = Arc::clone(&progress);
        tasks.spawn(async move {
            observer.expect_in_order(0, events as i64 - 1, |next| progress.set(n, next as u64)).await;
        });
    }
    let mut writer = Wire::connect(server.address, CREATE).await;
    measure(&server, observers * events, async {
        for first in (0..events).step_by(BATCH as usize) {
            if first >= IN_FLIGHT * BATCH {
                writer.answered().await;
            }
            progress.wait(first).await;
            let session_ids = (first..first + BATCH).map(|n| n as i64).collect();
            let request = BatchCreateSessionsRequest { session_ids, lease_id, ..Default::default() };
            writer.call(&framed(&request));
            writer.send().await;
        }
        for _ in 0..IN_FLIGHT.min(events / BATCH) {
            writer.answered().await;
        }
        finish(tasks).await;
    })
    .await
}

/// Fills the log, so that the measured server behaves like one that has run for a while and reuses its memory.
async fn warm_up(address: SocketAddr) {
    const CHANGES: u64 = 1_100_000;
    let ids = |n: u64| (0..BATCH).map(|i| -((n * BATCH + i) as i64) - 1).collect();
    let create = move |n| {
        framed(&BatchCreateSessionsRequest {
            session_ids: ids(n),
            auth_key_ids: vec![],
            lease_id: 0,
            ..Default::default()
        })
    };
    load(address, CREATE, CHANGES / BATCH, (2, 1), create).await;
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
    // Read and discard the answers, so that the server does not block.
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

async fn floor(observers: u64, events: u64) -> Rate {
    let server = peers::bare_tcp();
    let progress = Progress::new(observers);
    let mut tasks = JoinSet::new();
    for n in 0..observers as usize {
        let mut stream = connect(server.address, "").await;
        assert_eq!(stream.read_u8().await.unwrap(), 0);
        let progress = Arc::clone(&progress);
        tasks.spawn(async move {
            let (mut bytes, mut read) = (vec![0; 128 << 10], 0);
            while read < events / BATCH * floor::PUBLICATION as u64 {
                read += stream.read(&mut bytes).await.unwrap() as u64;
                progress.set(n, read / floor::PUBLICATION as u64 * BATCH);
            }
        });
    }
    let mut writer = connect(server.address, "p").await;
    measure(&server, observers * events, async {
        for first in (0..events).step_by(BATCH as usize) {
            progress.wait(first).await;
            // Each byte requests one publication. `connect` has sent the first byte.
            if first > 0 {
                writer.write_all(b"p").await.unwrap();
            }
        }
        finish(tasks).await;
    })
    .await
}
