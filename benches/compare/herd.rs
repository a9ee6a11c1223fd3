//! A herd: many observers that take a snapshot at the same time, as after a restart.
//!
//! To compare builds: `cargo bench --bench compare -- herd-cost BINARY…`.
//!
//! The observers and the callers stand for other machines. So the observers only use time that nobody else wants, and a
//! caller that has received its answer runs at once, which needs root. Otherwise a caller waits for the server and the
//! observers to leave it a processor, and that is most of what it measures.

use std::{
    env, io,
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use sessiond::proto::{
    BatchCreateSessionsRequest, HasSessionRequest, SubscribeRequest, SubscribeResponse, subscribe_request::Start,
};
use tokio::{
    process::Command,
    runtime,
    sync::watch,
    task::{JoinSet, spawn_blocking},
    time::sleep,
};

use super::{
    observer::{PATH, Stream, from_now, from_snapshot},
    percentile::percentiles,
    process::{Server, free_port},
    report::Report,
    wire::{Frame, PREFIX, Wire, framed, load},
};

const SESSIONS: u64 = 2_000_000;
/// As many as one message of events has.
const BATCH: u64 = 2400;
const HERDS: [usize; 3] = [1, 50, 500];

/// How many connections ask for HasSession meanwhile, and how long each pauses between calls.
const CALLERS: usize = 8;
const PAUSE: Duration = Duration::from_millis(2);

/// The priorities of the other processes.
const IDLE: &[&str] = &["chrt", "--idle", "0"];
const AT_ONCE: &[&str] = &["chrt", "--rr", "1"];

/// The bytes of a session in a snapshot, and of an event that reports its creation.
const SESSION_BYTES: f64 = 11.0;
const EVENT_BYTES: f64 = 13.0;

pub(crate) async fn run(report: &mut Report) {
    measure(report, env!("CARGO_BIN_EXE_sessiond").as_ref()).await;
}

/// Compares these builds.
pub(crate) async fn compare(binaries: &[String]) {
    for binary in binaries {
        println!("{binary}");
        measure(&mut Report::new(), binary.as_ref()).await;
    }
}

async fn measure(report: &mut Report, binary: &Path) {
    report.part(
        "Observers that take a snapshot of 2 million sessions at the same time",
        &[
            "observers",
            "what they receive",
            "server CPU, s",
            "of it user, s",
            "wall time, s",
            "HasSession p50, ms",
            "p99, ms",
            "more server memory, MB",
        ],
    );
    let port = free_port();
    let mut command = std::process::Command::new(binary);
    command.args(["--listen", &format!("127.0.0.1:{port}"), "--admin-listen", "127.0.0.1:0", "--log", "off"]);
    command.args(["--retain-events", "4000000", "--retain-bytes", "1000000000"]);
    // The observers may have to wait long for a processor.
    command.args(["--handshake-timeout", "5m", "--keepalive-timeout", "5m"]);
    let server = Server::start(&mut command, port).unwrap();
    let mut first = Stream::open(server.address, PATH, &from_now()).await;
    let start = first.next::<SubscribeResponse>().await.cursor;
    drop(first);
    let body = |n: u64| {
        let ids = n * BATCH..SESSIONS.min((n + 1) * BATCH);
        framed(&BatchCreateSessionsRequest { session_ids: ids.map(|id| id as i64 + 1).collect(), ..Default::default() })
    };
    load(server.address, "/sessiond.v1.SessionService/BatchCreateSessions", SESSIONS.div_ceil(BATCH), (1, 1), body)
        .await;
    for observers in HERDS {
        let snapshots = herd(report, &server, observers, "the snapshot", "").await;
        let ready = herd(report, &server, observers, "the same sessions as retained events", &start).await;
        let sending = ready.as_secs_f64() * SESSION_BYTES / EVENT_BYTES;
        report.row(&[
            observers.to_string(),
            "the snapshot, apart from sending".to_owned(),
            format!("{:.2}", snapshots.as_secs_f64() - sending),
        ]);
    }
    report.note(
        "The retained events were encoded when they were published, so this is what sending takes. An event has 13 \
         bytes and a session 11, and the last row takes that into account. The observers read and discard, on the \
         same cores but only in idle time (SCHED_IDLE). HasSession is called on 8 connections, every 2 ms on each, by \
         a process with real-time priority if root runs this.",
    );
}

/// Lets observers read everything from a cursor, or else a snapshot. Returns the processor time of the server.
async fn herd(report: &mut Report, server: &Server, observers: usize, what: &str, cursor: &str) -> Duration {
    // Until then the server returns memory of the last herd.
    sleep(Duration::from_secs(2)).await;
    let mut callers = program(at_once().await, "herd-calls", &[&server.address.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (cpu, user, memory, started) = (server.cpu(), server.user_cpu(), server.resident(), Instant::now());
    let mut herd = program(IDLE, "herd-of", &[&server.address.to_string(), &observers.to_string(), cursor])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut most = memory;
    let status = loop {
        tokio::select! {
            status = herd.wait() => break status.unwrap(),
            () = sleep(Duration::from_millis(20)) => most = most.max(server.resident()),
        }
    };
    assert!(status.success());
    let (taken, user, wall) = (server.cpu() - cpu, server.user_cpu() - user, started.elapsed());
    drop(callers.stdin.take());
    let times = String::from_utf8(callers.wait_with_output().await.unwrap().stdout).unwrap();
    let (p50, p99) = times.trim().split_once(' ').unwrap();
    report.row(&[
        observers.to_string(),
        what.to_owned(),
        format!("{:.2}", taken.as_secs_f64()),
        format!("{:.2}", user.as_secs_f64()),
        format!("{:.1}", wall.as_secs_f64()),
        p50.to_owned(),
        p99.to_owned(),
        format!("{:.0}", (most - memory) as f64 / 1e6),
    ]);
    taken
}

/// Runs what follows with this program in another priority.
fn program(priority: &[&str], mode: &str, args: &[&str]) -> Command {
    let mut command = Command::new("env");
    command.args(priority).arg(env::current_exe().unwrap()).arg(mode).args(args);
    command
}

/// Returns the priority of a process that runs as soon as it is ready, if this user may have it.
async fn at_once() -> &'static [&'static str] {
    let may = Command::new("env").args(AT_ONCE).arg("true").stderr(Stdio::null()).status().await;
    if may.is_ok_and(|status| status.success()) { AT_ONCE } else { &[] }
}

/// Calls HasSession until stdin ends, and prints the median and the 99th percentile in milliseconds. This is a process
/// of its own.
pub(crate) fn calls(address: &str) {
    let address = address.parse().unwrap();
    let times = runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let (running, stopped) = watch::channel(());
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            callers.spawn(call(address, stopped.clone()));
        }
        spawn_blocking(|| io::copy(&mut io::stdin(), &mut io::sink())).await.unwrap().unwrap();
        drop(running);
        callers.join_all().await.concat()
    });
    let times = percentiles(times);
    println!("{:.2} {:.2}", times(50) / 1e3, times(99) / 1e3);
}

/// Calls HasSession until it is stopped. Returns how long each call took.
async fn call(address: SocketAddr, stopped: watch::Receiver<()>) -> Vec<Duration> {
    let mut wire = Wire::connect(address, "/sessiond.v1.SessionService/HasSession").await;
    let request = framed(&HasSessionRequest { session_id: Some(1), auth_key_id: 0 });
    let mut times = Vec::new();
    while stopped.has_changed().is_ok() {
        let began = Instant::now();
        wire.answer(&request).await;
        times.push(began.elapsed());
        sleep(PAUSE).await;
    }
    times
}

/// Reads everything from a cursor, or else a snapshot, with so many observers, and discards it. This is a process of
/// its own.
pub(crate) fn read(address: &str, observers: &str, cursor: &str) {
    let address = address.parse().unwrap();
    let start = if cursor.is_empty() { Start::Snapshot(true) } else { Start::Cursor(cursor.to_owned()) };
    let request = SubscribeRequest { start: Some(start), ..from_snapshot() };
    runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let mut all = JoinSet::new();
        for _ in 0..observers.parse().unwrap() {
            all.spawn(discard(address, request.clone()));
        }
        all.join_all().await;
    });
}

/// Reads a stream until it has caught up: to the end of its snapshot, or to the heartbeat of a stream that resumes.
async fn discard(address: SocketAddr, request: SubscribeRequest) {
    let mut wire = Wire::connect(address, PATH).await;
    wire.call(&framed(&request));
    wire.send().await;
    let mut messages = Messages::default();
    loop {
        match wire.next().await {
            Frame::Data(data) => {
                if messages.pass(wire.payload(data)) {
                    return;
                }
            }
            Frame::End => panic!("the stream has ended"),
            Frame::Other => {}
        }
    }
}

/// Finds the messages of a stream without keeping them.
#[derive(Default)]
struct Messages {
    /// The prefix of the message and its first byte, as far as they have come.
    head: Vec<u8>,
    /// How many more bytes the message has.
    left: usize,
}

impl Messages {
    /// Passes over some bytes of the stream. Returns whether `synced` or a heartbeat is among them.
    fn pass(&mut self, mut bytes: &[u8]) -> bool {
        const SYNCED: u8 = 0x2a;
        const HEARTBEAT: u8 = 0x32;
        while let [byte, rest @ ..] = bytes {
            if self.left > 0 {
                let passed = self.left.min(bytes.len());
                self.left -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            self.head.push(*byte);
            bytes = rest;
            if let [_, len @ .., kind] = &self.head[..]
                && self.head.len() == PREFIX + 1
            {
                if matches!(*kind, SYNCED | HEARTBEAT) {
                    return true;
                }
                self.left = u32::from_be_bytes(len.try_into().unwrap()) as usize - 1;
                self.head.clear();
            }
        }
        false
    }
}
