//! Compares how sessiond and other systems track the gateway of each session: moving it, looking it up, and notifying
//! an observer of each move.

mod etcd;
mod etcd_messages;
mod limits;
mod nats;
mod pipeline;
mod redis;
mod sessiond;

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{join, time::timeout};

use self::{etcd::Etcd, nats::Nats, redis::Redis, sessiond::Sessiond};
use super::{percentile::percentiles, report::Report, resp::Subscriber, wire::Wire};

/// The number of sessions. In one run each moves at most once, because moves on different connections could overtake
/// one another.
const SESSIONS: u64 = 50_000;
/// The number of connections, and of calls in flight on each.
const SHAPE: (usize, usize) = (10, 10);
/// The addresses of the two gateways that the sessions move between.
const OWNERS: [&str; 2] = ["10.0.0.1:7000", "10.0.0.2:7000"];
/// Outlasts the measurements, so that no lease has to be kept alive.
const LEASE: Duration = Duration::from_secs(3600);

/// The number of calls of each kind that only warm up caches and buffers.
const WARMUP: u64 = 10_000;

/// The number of moves that are made one at a time, and how many of them are warm-up.
const ALONE: u64 = 1100;
const WARMUP_ALONE: usize = 100;

const ROUNDS: usize = 3;
/// How long an observer waits. After that, a move was refused or its notification was lost.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) async fn run(report: &mut Report) {
    let mut rows = [
        Row::new("sessiond, memory:", 300_000, 300_000),
        Row::new("sessiond, file:", 100_000, 300_000),
        Row::new("sessiond, redis: (CPU of both)", 100_000, 100_000),
        Row::new("Redis HSET and PUBLISH, no comparison; HGET", 200_000, 200_000),
        Row::new("Redis script: compare, HSET, PUBLISH; HGET", 200_000, 200_000),
        Row::new("etcd Txn under a lease; serializable Range", 20_000, 60_000),
        Row::new("etcd Txn under a lease; linearizable Range", 20_000, 60_000),
        Row::new("NATS KV update in memory; direct get", 60_000, 100_000),
    ];
    for _ in 0..ROUNDS {
        let [memory, file, over_redis, plain, script, serializable, linearizable, kv] = &mut rows;
        memory.measure(Some(Sessiond::in_memory().await)).await;
        file.measure(Some(Sessiond::in_file().await)).await;
        over_redis.measure(Sessiond::over_redis().await).await;
        plain.measure(Redis::plain()).await;
        script.measure(Redis::with_script().await).await;
        serializable.measure(Etcd::start(true).await).await;
        linearizable.measure(Etcd::start(false).await).await;
        kv.measure(Nats::start().await).await;
    }
    report.part(
        &format!(
            "Owners: {SESSIONS} sessions, one observer of all moves, {} connections x {} in flight",
            SHAPE.0, SHAPE.1
        ),
        &[
            "what",
            "server CPU, us per move",
            "moves per second",
            "server CPU, us per lookup",
            "lookups per second",
            "a single move until the observer has it, p50, us",
            "p99, us",
        ],
    );
    for row in &rows {
        row.print(report);
    }
    report.note(format!("Medians of {ROUNDS} rounds in which the servers take turns."));
    report.note(
        "A move names the current owner, and fails if the owner has changed; with NATS it names the revision instead. \
         The observer must receive every move.",
    );
    report.note("Only sessiond with `file:` and etcd write a move to disk before they answer. Nothing is replicated.");
    limits::print(report);
}

/// A change of a session's owner.
struct Move {
    session: u64,
    from: usize,
    to: usize,
}

impl Move {
    /// Returns move number `n`. The sessions move one after the other, back and forth, starting at the first owner.
    fn number(n: u64) -> Self {
        let (session, turn) = (n % SESSIONS, (n / SESSIONS) as usize);
        Self { session, from: turn % 2, to: (turn + 1) % 2 }
    }
}

/// A registry that starts with all sessions under the first owner.
trait Peer {
    type Observer: Observer;
    type Mover: Mover;

    /// Returns the processor time that its servers have taken.
    fn cpu(&self) -> Duration;

    /// Returns an observer of every move from now on.
    async fn observer(&self) -> Self::Observer;

    /// Moves sessions as fast as [`SHAPE`] allows, each at most once.
    async fn make_moves(&self, moves: Range<u64>);

    /// Looks up sessions as fast as [`SHAPE`] allows.
    async fn look_up(&self, lookups: u64);

    /// Returns a connection that moves one session at a time.
    async fn mover(&self) -> Self::Mover;
}

trait Observer {
    /// Waits until it has received `moves` more moves.
    async fn expect(&mut self, moves: u64);
}

/// An observer of a text protocol. Each notification contains `mark` once.
struct Notifications {
    subscriber: Subscriber,
    mark: &'static [u8],
}

impl Observer for Notifications {
    async fn expect(&mut self, moves: u64) {
        self.subscriber.expect_marks(self.mark, moves).await;
    }
}

trait Mover {
    /// Makes move number `n` and waits for its answer.
    async fn make(&mut self, n: u64);
}

/// A mover over gRPC.
struct Calls {
    wire: Wire,
    body: Box<dyn Fn(u64) -> Bytes>,
}

impl Mover for Calls {
    async fn make(&mut self, n: u64) {
        self.wire.answer(&(self.body)(n)).await;
    }
}

/// The measurements of one peer.
struct Row {
    what: &'static str,
    moves: u64,
    lookups: u64,
    /// For each round: microseconds per move, moves per second, the same two for lookups, and the p50 and p99 of a
    /// single move.
    rounds: Vec<[f64; 6]>,
}

impl Row {
    fn new(what: &'static str, moves: u64, lookups: u64) -> Self {
        Self { what, moves, lookups, rounds: Vec::new() }
    }

    /// Measures one round. Does nothing if the peer is not installed.
    async fn measure(&mut self, peer: Option<impl Peer>) {
        let Some(peer) = peer else { return };
        let mut observer = peer.observer().await;
        let mut next = 0;
        let mut make_moves = async |moves: u64| {
            let end = next + moves;
            while next < end {
                let some = next..end.min(next + SESSIONS);
                next = some.end;
                let received = observer.expect(some.end - some.start);
                self.in_time(async { join!(peer.make_moves(some), received) }).await;
            }
        };
        make_moves(WARMUP).await;
        let [move_us, moves_a_second] = rate(&peer, self.moves, make_moves(self.moves)).await;
        peer.look_up(WARMUP).await;
        let [lookup_us, lookups_a_second] = rate(&peer, self.lookups, peer.look_up(self.lookups)).await;

        let (mut mover, mut times) = (peer.mover().await, Vec::new());
        for n in next..next + ALONE {
            let started = Instant::now();
            let received = async {
                observer.expect(1).await;
                started.elapsed()
            };
            times.push(self.in_time(async { join!(received, mover.make(n)).0 }).await);
        }
        let at = percentiles(times.drain(WARMUP_ALONE..));
        println!("  {} | {move_us:.1} us per move", self.what);
        self.rounds.push([move_us, moves_a_second, lookup_us, lookups_a_second, at(50), at(99)]);
    }

    /// Waits for moves and their notifications. Panics after [`TIMEOUT`].
    async fn in_time<T>(&self, moves: impl Future<Output = T>) -> T {
        let ended = timeout(TIMEOUT, moves).await;
        ended.unwrap_or_else(|_| panic!("{}: the observer did not receive every move", self.what))
    }

    fn print(&self, report: &mut Report) {
        if self.rounds.is_empty() {
            return report.note(format!("{}: not installed.", self.what));
        }
        let median = |column: usize| {
            let mut figures: Vec<f64> = self.rounds.iter().map(|round| round[column]).collect();
            figures.sort_by(f64::total_cmp);
            figures[figures.len() / 2]
        };
        let mut cells = vec![self.what.to_owned()];
        cells.extend([(0, 1), (1, 0), (2, 1), (3, 0), (4, 0), (5, 0)].map(|(column, digits)| {
            let figure = median(column);
            format!("{figure:.digits$}")
        }));
        report.row(&cells);
    }
}

/// Measures `work`, which makes `calls` calls. Returns the servers' processor time per call in microseconds, and the
/// calls per second.
async fn rate(peer: &impl Peer, calls: u64, work: impl Future<Output = ()>) -> [f64; 2] {
    let (cpu, started) = (peer.cpu(), Instant::now());
    work.await;
    let (cpu, wall) = (peer.cpu() - cpu, started.elapsed());
    [cpu.as_secs_f64() * 1e6 / calls as f64, calls as f64 / wall.as_secs_f64()]
}
