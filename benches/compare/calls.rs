//! Calls with one session each.

use std::process::Command;

use sessiond::proto::{CreateSessionRequest, DestroySessionRequest, HasSessionRequest};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
};

use super::{
    observer::{Observer, from_now},
    peers,
    process::{Least, Server, Taken},
    report::Report,
    resp,
    wire::{framed, load},
};

const HAS: &str = "/sessiond.v1.SessionService/HasSession";
const CALLS: u64 = 300_000;
const ROUNDS: usize = 5;

async fn has(server: &Server, shape: (usize, usize)) -> Taken {
    let body = framed(&HasSessionRequest { session_id: Some(42), auth_key_id: 0 });
    let work = |calls| {
        let body = body.clone();
        load(server.address, HAS, calls, shape, move |_| body.clone())
    };
    work(CALLS / 10).await;
    Taken::by(server, work(CALLS)).await
}

fn row(report: &mut Report, what: &str, calls: u64, taken: &Taken, base: f64) {
    let us = taken.us_each(calls);
    let a_second = calls as f64 / taken.wall.as_secs_f64();
    report.measured(what, taken, &[format!("{us:.2}"), format!("{:.2}x", us / base), format!("{a_second:.0}")]);
}

pub(crate) async fn run(report: &mut Report) {
    let columns = ["server", "server CPU, us per call", "to sessiond", "calls per second"];
    for (shape, name) in [((10, 10), "10 connections x 10"), ((1, 100), "1 connection x 100"), ((64, 1), "64 x 1")] {
        report.part(&format!("HasSession, {name} in flight"), &columns);
        let mut servers = vec![
            ("sessiond", peers::sessiond(&[])),
            ("tonic's generated service, a runtime a core", peers::direct_tonic()),
            ("the same with tonic's server and router", peers::routed_tonic()),
            ("stock tonic, no-op", peers::stock_tonic()),
            ("bare h2, no-op", peers::bare_h2()),
        ];
        if shape == (64, 1) {
            servers.push(("bare TCP, no HTTP/2", peers::bare_calls()));
        }
        let mut least = Least::default();
        for _ in 0..ROUNDS {
            for (n, (_, server)) in servers.iter().enumerate() {
                least.add(n, has(server, shape).await);
            }
        }
        let ours = least.0[0].us_each(CALLS);
        for ((what, _), taken) in servers.iter().zip(&least.0) {
            row(report, what, CALLS, taken, ours);
        }
        if shape == (64, 1) {
            report.note("Bare TCP does one read and one write per call, and does not parse what it reads.");
        }
        if shape == (10, 10) {
            match peers::redis() {
                Some(redis) => {
                    exists(&redis, CALLS / 10).await;
                    let mut least = Least::default();
                    for _ in 0..ROUNDS {
                        least.add(0, exists(&redis, CALLS).await);
                    }
                    row(report, "Redis EXISTS, 100 connections x 1", CALLS, &least.0[0], ours);
                }
                None => report.note("Redis is not installed."),
            }
            let folder = tempfile::tempdir().unwrap();
            match peers::etcd(folder.path()) {
                Some(etcd) => {
                    for (what, path, body) in ETCD {
                        let body = bytes::Bytes::from_static(body);
                        let calls = CALLS / 10;
                        let work = load(etcd.address, path, calls, shape, move |_| body.clone());
                        row(report, what, calls, &Taken::by(&etcd, work).await, ours);
                    }
                }
                None => report.note("etcd is not installed."),
            }
        }
    }
    changes(report).await;
}

/// Calls EXISTS with as many calls in flight as HasSession has, each on its own connection, so without pipelining.
///
/// This does not use redis-benchmark, which takes more processor time for such a call than Redis does.
async fn exists(redis: &Server, calls: u64) -> Taken {
    const CONNECTIONS: u64 = 100;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(resp::connect(redis.address, "").await);
    }
    let work = async {
        let mut callers = JoinSet::new();
        for mut connection in connections {
            callers.spawn(async move {
                for _ in 0..calls / CONNECTIONS {
                    connection.write_all(b"*2\r\n$6\r\nEXISTS\r\n$3\r\nkey\r\n").await.unwrap();
                    let mut answer = [0; 8];
                    let length = connection.read(&mut answer).await.unwrap();
                    assert_eq!(&answer[..length], b":0\r\n");
                }
            });
        }
        callers.join_all().await;
    };
    Taken::by(redis, work).await
}

/// etcd's calls as encoded messages: a serializable Range of a one-byte key, and a Put of the same key with a one-byte
/// value.
const ETCD: [(&str, &str, &[u8]); 2] = [
    ("etcd Range, serializable", "/etcdserverpb.KV/Range", &[0, 0, 0, 0, 5, 0x0a, 1, b'k', 0x38, 1]),
    ("etcd Put", "/etcdserverpb.KV/Put", &[0, 0, 0, 0, 6, 0x0a, 1, b'k', 0x12, 1, b'v']),
];

async fn changes(report: &mut Report) {
    report.part(
        "Changes with and without 10 observers, 10 connections x 10 in flight",
        &["call", "server CPU, us per call", "to HasSession of each session", "calls per second"],
    );
    let mut least = Least::default();
    for _ in 0..ROUNDS {
        let server = peers::sessiond(&[]);
        least.add(0, has(&server, (10, 10)).await);
        least.add(1, create(&server).await);
        least.add(2, has_each(&server).await);
        least.add(3, destroy(&server).await);
        let mut observers = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let mut observer = Observer::connect(server.address, &from_now()).await;
            observers.spawn(async move {
                loop {
                    observer.next().await;
                }
            });
        }
        least.add(4, create(&server).await);
        least.add(5, destroy(&server).await);
        // Stop the observers before the server: they panic when their stream ends.
        observers.shutdown().await;
    }
    let base = least.0[2].us_each(CALLS);
    let rows = [
        "HasSession of one session, which stays in the caches, no observers",
        "CreateSession, no observers",
        "HasSession of each session, no observers",
        "DestroySession, no observers",
        "CreateSession, 10 observers",
        "DestroySession, 10 observers",
    ];
    for (what, taken) in rows.into_iter().zip(&least.0) {
        row(report, what, CALLS, taken, base);
    }
    report.note(format!(
        "Each of {CALLS} sessions is created, checked and destroyed. With observers, each change has ten deliveries."
    ));
}

async fn has_each(server: &Server) -> Taken {
    let has = |n| framed(&HasSessionRequest { session_id: Some(n as i64), auth_key_id: 0 });
    Taken::by(server, load(server.address, HAS, CALLS, (10, 10), has)).await
}

async fn create(server: &Server) -> Taken {
    let create = |n| {
        framed(&CreateSessionRequest { session_id: Some(n as i64), auth_key_id: 0, lease_id: 0, ..Default::default() })
    };
    Taken::by(server, load(server.address, "/sessiond.v1.SessionService/CreateSession", CALLS, (10, 10), create)).await
}

async fn destroy(server: &Server) -> Taken {
    let destroy = |n| {
        framed(&DestroySessionRequest { session_id: Some(n as i64), auth_key_id: 0, lease_id: 0, ..Default::default() })
    };
    Taken::by(server, load(server.address, "/sessiond.v1.SessionService/DestroySession", CALLS, (10, 10), destroy))
        .await
}

/// Runs redis-benchmark with 50 connections and `pipeline` commands in flight on each.
pub(crate) async fn redis_benchmark(redis: &Server, calls: u64, pipeline: u64, command: &[&str]) -> Taken {
    let port = redis.address.port().to_string();
    let options = [("-p", &port), ("-n", &calls.to_string()), ("-P", &pipeline.to_string())];
    let mut benchmark = Command::new("redis-benchmark");
    benchmark
        .args(options.into_iter().flat_map(|(flag, value)| [flag, value]))
        .args(["-c", "50", "-q", "-r", "1000000"]);
    Taken::by(redis, async {
        let output = benchmark.args(command).output().unwrap();
        assert!(output.status.success());
    })
    .await
}
