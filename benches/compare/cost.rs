//! Compares builds of sessiond by what their Redis storage costs: `cargo bench --bench compare -- redis-cost BINARY…`.
//!
//! The binaries take turns, each with its own Redis, so that other load on the machine affects all of them alike. The
//! report has the cheapest of several rounds for each.

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use redis::{Client, Cmd, FromRedisValue, cmd};
use sessiond::proto::{
    BatchCreateSessionsRequest, BatchDestroySessionsRequest, BatchHasSessionsRequest, CreateSessionRequest,
    DestroySessionRequest, GrantLeaseRequest, HasSessionRequest, lease_service_client::LeaseServiceClient,
    session_service_client::SessionServiceClient,
};

use super::{
    peers,
    process::{Server, free_port},
    wire::{Wire, framed, load},
};

const ROUNDS: usize = 5;
/// How many sessions each kind of call is measured with.
const SESSIONS: u64 = 200_000;
const BATCH: u64 = 1000;
/// How long single calls are measured while another client sends large batches, and the size of those batches.
const BESIDE: Duration = Duration::from_secs(6);
const LARGE: u64 = 65_536;

const CREATE: &str = "/sessiond.v1.SessionService/CreateSession";
const HAS: &str = "/sessiond.v1.SessionService/HasSession";
const DESTROY: &str = "/sessiond.v1.SessionService/DestroySession";
const BATCH_CREATE: &str = "/sessiond.v1.SessionService/BatchCreateSessions";
const BATCH_HAS: &str = "/sessiond.v1.SessionService/BatchHasSessions";
const BATCH_DESTROY: &str = "/sessiond.v1.SessionService/BatchDestroySessions";

/// A sessiond with its own Redis.
struct Pair {
    redis: Server,
    sessiond: Server,
}

impl Pair {
    fn start(binary: &Path) -> Self {
        let redis = peers::redis().unwrap();
        let port = free_port();
        let mut command = Command::new(binary);
        command.args(["--listen", &format!("127.0.0.1:{port}"), "--admin-listen", "127.0.0.1:0", "--log", "off"]);
        command.args(["--storage", &format!("redis://{}/?timeout_ms=20000", redis.address)]);
        let sessiond = Server::start(&mut command, port).unwrap();
        Self { redis, sessiond }
    }

    fn ask<T: FromRedisValue>(&self, command: &Cmd) -> T {
        let mut connection =
            Client::open(format!("redis://{}/", self.redis.address)).unwrap().get_connection().unwrap();
        command.query(&mut connection).unwrap()
    }

    /// Returns the processor time that Redis reports, in seconds.
    fn cpu(&self) -> f64 {
        let info: String = self.ask(cmd("INFO").arg("cpu"));
        let of = |field: &str| -> f64 {
            info.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim().parse().unwrap()
        };
        of("used_cpu_user:") + of("used_cpu_sys:")
    }

    async fn grant(&self) -> u64 {
        let mut leases = LeaseServiceClient::connect(format!("http://{}", self.sessiond.address)).await.unwrap();
        let ttl = Some(prost_types::Duration { seconds: 3600, nanos: 0 });
        let granted = leases.grant_lease(GrantLeaseRequest { ttl, owner: "bench".to_owned() }).await;
        granted.unwrap().into_inner().lease_id
    }

    /// Makes `calls` calls of one kind. Returns the processor time of Redis and of sessiond, in microseconds per
    /// session.
    async fn measure(
        &self,
        path: &'static str,
        calls: u64,
        shape: (usize, usize),
        body: impl Fn(u64) -> Bytes + Send + Sync + 'static,
    ) -> [f64; 2] {
        let (redis, sessiond) = (self.cpu(), self.sessiond.cpu());
        load(self.sessiond.address, path, calls, shape, body).await;
        let a_session = 1e6 / SESSIONS as f64;
        [(self.cpu() - redis) * a_session, (self.sessiond.cpu() - sessiond).as_secs_f64() * a_session]
    }
}

/// Returns the id of session `n`. The ids have no pattern.
fn id(n: u64) -> i64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) as i64
}

fn ids(batch: u64, size: u64) -> Vec<i64> {
    (batch * size..(batch + 1) * size).map(id).collect()
}

fn create(session_ids: Vec<i64>, lease_id: u64) -> Bytes {
    framed(&BatchCreateSessionsRequest { session_ids, lease_id, ..Default::default() })
}

fn has(session_ids: Vec<i64>) -> Bytes {
    framed(&BatchHasSessionsRequest { session_ids, ..Default::default() })
}

fn destroy(session_ids: Vec<i64>) -> Bytes {
    framed(&BatchDestroySessionsRequest { session_ids, ..Default::default() })
}

/// Measures every kind of call, in the order of [`KINDS`].
async fn costs(binary: &Path) -> Vec<[f64; 2]> {
    let pair = Pair::start(binary);
    let lease = pair.grant().await;
    let (batches, a_few) = (SESSIONS / BATCH, (10, 1));
    let mut costs = vec![
        pair.measure(BATCH_CREATE, batches, a_few, |n| create(ids(n, BATCH), 0)).await,
        pair.measure(BATCH_HAS, batches, a_few, |n| has(ids(n, BATCH))).await,
        pair.measure(BATCH_DESTROY, batches, a_few, |n| destroy(ids(n, BATCH))).await,
        pair.measure(BATCH_CREATE, batches, a_few, move |n| create(ids(n, BATCH), lease)).await,
        pair.measure(BATCH_DESTROY, batches, a_few, |n| destroy(ids(n, BATCH))).await,
    ];
    let one = |n| Some(id(n));
    let many = (10, 16);
    costs.push(
        pair.measure(CREATE, SESSIONS, many, move |n| {
            framed(&CreateSessionRequest { session_id: one(n), ..Default::default() })
        })
        .await,
    );
    costs.push(
        pair.measure(HAS, SESSIONS, many, move |n| {
            framed(&HasSessionRequest { session_id: one(n), ..Default::default() })
        })
        .await,
    );
    costs.push(
        pair.measure(DESTROY, SESSIONS, many, move |n| {
            framed(&DestroySessionRequest { session_id: one(n), ..Default::default() })
        })
        .await,
    );
    costs
}

const KINDS: [&str; 8] = [
    "BatchCreateSessions, 1,000 sessions",
    "BatchHasSessions, 1,000 sessions",
    "BatchDestroySessions, 1,000 sessions",
    "BatchCreateSessions under a lease, 1,000 sessions",
    "BatchDestroySessions of sessions under a lease, 1,000 sessions",
    "CreateSession, 160 in flight",
    "HasSession, 160 in flight",
    "DestroySession, 160 in flight",
];

/// Measures the latency of single calls while another client sends large batches, in microseconds.
///
/// Returns the p50, p99 and maximum latency of a call, and the maximum and p99 duration of Redis' scripts.
async fn waits(binary: &Path) -> [f64; 5] {
    let pair = Pair::start(binary);
    let () = pair.ask(cmd("CONFIG").arg("SET").arg("slowlog-log-slower-than").arg(500));
    let () = pair.ask(cmd("CONFIG").arg("SET").arg("slowlog-max-len").arg(100_000));
    let () = pair.ask(cmd("CONFIG").arg("RESETSTAT"));
    let is_over = Arc::new(AtomicBool::new(false));
    let address = pair.sessiond.address;
    let batches = tokio::spawn({
        let is_over = Arc::clone(&is_over);
        async move {
            let mut calls = SessionServiceClient::connect(format!("http://{address}")).await.unwrap();
            let session_ids = ids(1, LARGE);
            while !is_over.load(Ordering::Relaxed) {
                let session_ids = || session_ids.clone();
                let request = BatchCreateSessionsRequest { session_ids: session_ids(), ..Default::default() };
                calls.batch_create_sessions(request).await.unwrap();
                let request = BatchHasSessionsRequest { session_ids: session_ids(), ..Default::default() };
                calls.batch_has_sessions(request).await.unwrap();
                let request = BatchDestroySessionsRequest { session_ids: session_ids(), ..Default::default() };
                calls.batch_destroy_sessions(request).await.unwrap();
            }
        }
    });
    let body = framed(&HasSessionRequest { session_id: Some(1), ..Default::default() });
    let mut wire = Wire::connect(address, HAS).await;
    let (mut times, begun) = (Vec::new(), Instant::now());
    while begun.elapsed() < BESIDE {
        let started = Instant::now();
        wire.answer(&body).await;
        times.push(started.elapsed());
    }
    is_over.store(true, Ordering::Relaxed);
    batches.await.unwrap();
    times.sort_unstable();
    let at = |per_mille: usize| times[(times.len() - 1) * per_mille / 1000].as_secs_f64() * 1e6;
    let slow: Vec<(u64, u64, u64, Vec<redis::Value>, String, String)> = pair.ask(cmd("SLOWLOG").arg("GET").arg(-1));
    let longest = slow.iter().map(|(_, _, us, ..)| *us).max().unwrap_or_default();
    let info: String = pair.ask(cmd("INFO").arg("latencystats"));
    let scripts = info.lines().find_map(|line| line.strip_prefix("latency_percentiles_usec_evalsha:"));
    let p99 = scripts.and_then(|text| text.split(',').find_map(|part| part.strip_prefix("p99=")?.parse().ok()));
    [at(500), at(990), at(1000), longest as f64, p99.unwrap_or(f64::NAN)]
}

fn print(what: &str, figures: impl IntoIterator<Item = f64>) {
    let figures: Vec<String> = figures.into_iter().map(|figure| format!("{figure:.2}")).collect();
    println!("| {what} | {} |", figures.join(" | "));
}

/// Measures the binaries, and prints the tables.
pub(crate) async fn run(binaries: &[String]) {
    let binaries: Vec<&Path> = binaries.iter().map(Path::new).collect();
    let mut least = vec![vec![[f64::INFINITY; 2]; KINDS.len()]; binaries.len()];
    for _ in 0..ROUNDS {
        for (binary, least) in binaries.iter().zip(&mut least) {
            for (cost, least) in costs(binary).await.into_iter().zip(least) {
                cost.into_iter().zip(least).for_each(|(cost, least)| *least = least.min(cost));
            }
        }
    }
    for (place, whose) in ["Redis CPU, us per session", "sessiond CPU, us per session"].into_iter().enumerate() {
        println!("\n{whose}, for each binary; the best of {ROUNDS} rounds\n");
        for (kind, what) in KINDS.into_iter().enumerate() {
            print(what, least.iter().map(|costs| costs[kind][place]));
        }
    }
    println!("\nHasSession beside batches of {LARGE}, us: call p50, p99 and maximum; Redis script maximum and p99\n");
    for _ in 0..2 {
        for binary in &binaries {
            print(&binary.display().to_string(), waits(binary).await);
        }
    }
}
