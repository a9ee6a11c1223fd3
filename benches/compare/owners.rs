//! The same job by sessiond and by what people use instead: store which gateway has a session, look it up, and tell an
//! observer when another gateway takes it.

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
use super::{report::Report, resp::Subscriber, wire::Wire};

/// In one go, a session moves at most once: its moves would overtake one another on different connections.
const SESSIONS: u64 = 50_000;
/// How many connections call at once, and how many calls each has in flight.
const SHAPE: (usize, usize) = (10, 10);
/// The gateways that the sessions move between, by their addresses.
const OWNERS: [&str; 2] = ["10.0.0.1:7000", "10.0.0.2:7000"];
/// Long enough to outlast the measurements, so that nothing has to be kept alive.
const LEASE: Duration = Duration::from_secs(3600);

/// How many calls of each kind only warm up caches and buffers.
const WARMUP: u64 = 10_000;

/// How many moves are made one at a time, and how many of them are warm-up.
const ALONE: u64 = 1100;
const WARMUP_ALONE: usize = 100;

const ROUNDS: usize = 3;
/// An observer that waits for longer was never told: a move was refused, or its notice lost.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn run(report: &mut Report) {
    let mut rows = [
        Row::new("sessiond, memory:", 300_000, 300_000),
        Row::new("sessiond, file:", 100_000, 300_000),
        Row::new("sessiond, redis: (CPU of both)", 100_000, 100_000),
        Row::new("Redis HSET and PUBLISH, not compared; HGET", 200_000, 200_000),
        Row::new("Redis script that compares, sets and publishes; HGET", 200_000, 200_000),
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
            "Which gateway has it: {SESSIONS} sessions, an observer of all moves, {} connections x {} in flight",
            SHAPE.0, SHAPE.1
        ),
        &[
            "what",
            "server CPU, us a move",
            "moves a second",
            "server CPU, us a lookup",
            "lookups a second",
            "one move alone until the observer has it, p50, us",
            "p99, us",
        ],
    );
    for row in &rows {
        row.tell(report);
    }
    report.note(format!("Medians of {ROUNDS} rounds in which the servers take turns."));
    report.note(
        "A move names the owner that it takes the session from, and fails if that is another by then; NATS names the \
         revision instead. Every move is counted at the observer.",
    );
    report.note("Only sessiond's file: and etcd have a move on disk before they answer. Nothing is replicated.");
    limits::tell(report);
}

/// A change of a session's owner.
struct Move {
    session: u64,
    from: usize,
    to: usize,
}

impl Move {
    /// Move number `n`: each session moves in its turn, back and forth. All start with the first owner.
    fn number(n: u64) -> Self {
        let (session, turn) = (n % SESSIONS, (n / SESSIONS) as usize);
        Self { session, from: turn % 2, to: (turn + 1) % 2 }
    }
}

/// A registry that holds all sessions, under the first owner.
trait Peer {
    type Observer: Observer;
    type Mover: Mover;

    /// The processor time that its servers have taken.
    fn cpu(&self) -> Duration;

    /// An observer of every move from now on.
    async fn observer(&self) -> Self::Observer;

    /// Moves sessions as fast as [`SHAPE`] allows, each at most once.
    async fn make_moves(&self, moves: Range<u64>);

    /// Looks up sessions as fast as [`SHAPE`] allows.
    async fn look_up(&self, lookups: u64);

    /// A connection that moves one session at a time.
    async fn mover(&self) -> Self::Mover;
}

trait Observer {
    /// Waits until it has been told of so many more moves.
    async fn hear(&mut self, moves: u64);
}

/// An observer of a text protocol, in which each notice has `mark` once.
struct Notices {
    subscriber: Subscriber,
    mark: &'static [u8],
}

impl Observer for Notices {
    async fn hear(&mut self, moves: u64) {
        self.subscriber.expect_marks(self.mark, moves).await;
    }
}

trait Mover {
    /// Makes move number `n`, and waits for its answer.
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

/// What is measured in the same way for each peer, and the figures of the rounds so far.
struct Row {
    what: &'static str,
    moves: u64,
    lookups: u64,
    /// Of each round: microseconds a move, moves a second, the same of lookups, and two percentiles.
    rounds: Vec<[f64; 6]>,
}

impl Row {
    fn new(what: &'static str, moves: u64, lookups: u64) -> Self {
        Self { what, moves, lookups, rounds: Vec::new() }
    }

    /// Measures a round, unless the peer is not installed.
    async fn measure(&mut self, peer: Option<impl Peer>) {
        let Some(peer) = peer else { return };
        let mut observer = peer.observer().await;
        let mut next = 0;
        let mut make_moves = async |moves: u64| {
            let end = next + moves;
            while next < end {
                let some = next..end.min(next + SESSIONS);
                next = some.end;
                let told = observer.hear(some.end - some.start);
                self.heard(async { join!(peer.make_moves(some), told) }).await;
            }
        };
        make_moves(WARMUP).await;
        let [move_us, moves_a_second] = rate(&peer, self.moves, make_moves(self.moves)).await;
        peer.look_up(WARMUP).await;
        let [lookup_us, lookups_a_second] = rate(&peer, self.lookups, peer.look_up(self.lookups)).await;

        let (mut mover, mut times) = (peer.mover().await, Vec::new());
        for n in next..next + ALONE {
            let started = Instant::now();
            let told = async {
                observer.hear(1).await;
                started.elapsed()
            };
            times.push(self.heard(async { join!(told, mover.make(n)).0 }).await);
        }
        times.drain(..WARMUP_ALONE);
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6;
        println!("  {} | {move_us:.1} us a move", self.what);
        self.rounds.push([move_us, moves_a_second, lookup_us, lookups_a_second, at(50), at(99)]);
    }

    /// Waits for moves and their notices.
    async fn heard<T>(&self, moves: impl Future<Output = T>) -> T {
        let heard = timeout(PATIENCE, moves).await;
        heard.unwrap_or_else(|_| panic!("{}: the observer is not told of every move", self.what))
    }

    fn tell(&self, report: &mut Report) {
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

/// Microseconds of the servers' processor time for each of so many calls, and calls a second.
async fn rate(peer: &impl Peer, calls: u64, work: impl Future<Output = ()>) -> [f64; 2] {
    let (cpu, started) = (peer.cpu(), Instant::now());
    work.await;
    let (cpu, wall) = (peer.cpu() - cpu, started.elapsed());
    [cpu.as_secs_f64() * 1e6 / calls as f64, calls as f64 / wall.as_secs_f64()]
}
