//! One session a call.

use std::{process::Command, time::Instant};

use sessiond::proto::{CreateSessionRequest, DestroySessionRequest, HasSessionRequest};

use super::{
    grpc::{framed, load},
    observer::{Observer, from_now},
    peers,
    process::Server,
    report::Report,
};

const HAS: &str = "/sessiond.v1.SessionService/HasSession";
const CALLS: u64 = 300_000;
const ROUNDS: usize = 5;

/// Processor time of the server and wall time, a call in microseconds and calls a second.
struct Cost {
    cpu_us: f64,
    a_second: f64,
}

async fn measure(server: &Server, calls: u64, work: impl Future<Output = ()>) -> Cost {
    let (cpu, started) = (server.cpu(), Instant::now());
    work.await;
    let cpu_us = (server.cpu() - cpu).as_secs_f64() * 1e6 / calls as f64;
    Cost { cpu_us, a_second: calls as f64 / started.elapsed().as_secs_f64() }
}

async fn has(server: &Server, shape: (usize, usize)) -> Cost {
    let body = framed(&HasSessionRequest { session_id: Some(42), auth_key_id: 0 });
    let work = |calls| {
        let body = body.clone();
        load(server.address, HAS, calls, shape, move |_| body.clone())
    };
    work(CALLS / 10).await;
    measure(server, CALLS, work(CALLS)).await
}

/// The least that each server took in some rounds, in which they take turns: what a shared machine adds, it adds at times.
async fn least_of(rounds: usize, servers: &[Server; 3], shape: (usize, usize)) -> [Cost; 3] {
    let mut least: [Option<Cost>; 3] = [None, None, None];
    for _ in 0..rounds {
        for (server, least) in servers.iter().zip(&mut least) {
            let cost = has(server, shape).await;
            if least.as_ref().is_none_or(|least| cost.cpu_us < least.cpu_us) {
                *least = Some(cost);
            }
        }
    }
    least.map(Option::unwrap)
}

fn row(report: &mut Report, what: &str, cost: &Cost, base: &Cost) {
    report.row(&[
        what.to_owned(),
        format!("{:.2}", cost.cpu_us),
        format!("{:.2}x", cost.cpu_us / base.cpu_us),
        format!("{:.0}", cost.a_second),
    ]);
}

pub(crate) async fn run(report: &mut Report) {
    let columns = ["server", "server CPU, us a call", "to sessiond", "calls a second"];
    for (shape, name) in [((10, 10), "10 connections x 10"), ((1, 100), "1 connection x 100"), ((64, 1), "64 x 1")] {
        report.part(&format!("HasSession, {name} in flight"), &columns);
        let servers = [peers::sessiond(&[]), peers::stock_tonic(), peers::bare_h2()];
        let [ours, stock, bare] = least_of(ROUNDS, &servers, shape).await;
        row(report, "sessiond", &ours, &ours);
        row(report, "stock tonic, no-op", &stock, &ours);
        row(report, "bare h2, no-op", &bare, &ours);
        if shape == (10, 10) {
            match peers::redis() {
                Some(redis) => row(
                    report,
                    "Redis EXISTS, 50 connections",
                    &redis_benchmark(&redis, 1, &["EXISTS", "key"]).await,
                    &ours,
                ),
                None => report.note("Redis is not installed."),
            }
            match peers::etcd() {
                Some(etcd) => {
                    for (what, path, body) in ETCD {
                        let body = bytes::Bytes::from_static(body);
                        let calls = CALLS / 10;
                        let cost =
                            measure(&etcd, calls, load(etcd.address, path, calls, shape, move |_| body.clone())).await;
                        row(report, what, &cost, &ours);
                    }
                }
                None => report.note("etcd is not installed."),
            }
        }
    }
    changes(report).await;
}

/// etcd's calls, as their bytes: a key of one byte, `serializable`; the same key and a value of one byte.
const ETCD: [(&str, &str, &[u8]); 2] = [
    ("etcd Range, serializable", "/etcdserverpb.KV/Range", &[0, 0, 0, 0, 5, 0x0a, 1, b'k', 0x38, 1]),
    ("etcd Put", "/etcdserverpb.KV/Put", &[0, 0, 0, 0, 6, 0x0a, 1, b'k', 0x12, 1, b'v']),
];

async fn changes(report: &mut Report) {
    report.part(
        "Changes with 10 observers attached, 10 connections x 10 in flight",
        &["call", "server CPU, us a call", "to HasSession", "calls a second"],
    );
    let server = peers::sessiond(&[]);
    let base = has(&server, (10, 10)).await;
    row(report, "HasSession, no observers", &base, &base);
    let mut observers = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let mut observer = Observer::connect(server.address, &from_now()).await;
        observers.spawn(async move {
            loop {
                observer.next().await;
            }
        });
    }
    let create = |n| framed(&CreateSessionRequest { session_id: Some(n as i64), auth_key_id: 0, lease_id: 0 });
    let work = load(server.address, "/sessiond.v1.SessionService/CreateSession", CALLS, (10, 10), create);
    row(report, "CreateSession", &measure(&server, CALLS, work).await, &base);
    let destroy = |n| framed(&DestroySessionRequest { session_id: Some(n as i64), auth_key_id: 0, lease_id: 0 });
    let work = load(server.address, "/sessiond.v1.SessionService/DestroySession", CALLS, (10, 10), destroy);
    row(report, "DestroySession", &measure(&server, CALLS, work).await, &base);
    report.note("The cost of the deliveries, ten for each change, is in it.");
}

/// Redis' own loader, 50 connections, with so many commands in a pipeline.
async fn redis_benchmark(redis: &Server, pipeline: u64, command: &[&str]) -> Cost {
    let calls = CALLS * pipeline.min(10);
    let cpu = redis.cpu();
    let started = Instant::now();
    let port = redis.address.port().to_string();
    let options = [("-p", &port), ("-n", &calls.to_string()), ("-P", &pipeline.to_string())];
    let mut benchmark = Command::new("redis-benchmark");
    benchmark
        .args(options.into_iter().flat_map(|(flag, value)| [flag, value]))
        .args(["-c", "50", "-q", "-r", "1000000"]);
    let output = benchmark.args(command).output().unwrap();
    assert!(output.status.success());
    let cpu_us = (redis.cpu() - cpu).as_secs_f64() * 1e6 / calls as f64;
    Cost { cpu_us, a_second: calls as f64 / started.elapsed().as_secs_f64() }
}

/// The cost of a Redis command in pipelines of 100, in microseconds of its processor time.
pub(crate) async fn redis_pipelined(redis: &Server, command: &[&str]) -> f64 {
    redis_benchmark(redis, 100, command).await.cpu_us
}
