//! Changes that are on disk before they are answered. All servers sync to the same disk, and take turns.

use std::time::Instant;

use bytes::Bytes;
use sessiond::proto::{BatchCreateSessionsRequest, CreateSessionRequest};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use super::{
    peers,
    process::Server,
    report::Report,
    wire::{framed, load},
};

const CONNECTIONS: usize = 10;
const IN_FLIGHT: usize = 100;
const CALLS: u64 = 200_000;
const ROUNDS: u64 = 5;

const CREATE: &str = "/sessiond.v1.SessionService/CreateSession";
const CREATE_BATCH: &str = "/sessiond.v1.SessionService/BatchCreateSessions";
const PUT: &str = "/etcdserverpb.KV/Put";

/// The cost of changes.
#[derive(Clone, Copy)]
struct Cost {
    /// Processor time of the server per change, in microseconds.
    cpu_us: f64,
    changes_per_second: f64,
}

async fn measure(server: &Server, calls: u64, work: impl Future<Output = ()>) -> Cost {
    let (cpu, started) = (server.cpu(), Instant::now());
    work.await;
    let cpu_us = (server.cpu() - cpu).as_secs_f64() * 1e6 / calls as f64;
    Cost { cpu_us, changes_per_second: calls as f64 / started.elapsed().as_secs_f64() }
}

/// Creates sessions, new ones in each round.
async fn create(server: &Server, round: u64) -> Cost {
    let body = move |n: u64| {
        framed(&CreateSessionRequest {
            session_id: Some((round * CALLS + n) as i64),
            auth_key_id: 0,
            lease_id: 0,
            ..Default::default()
        })
    };
    measure(server, CALLS, load(server.address, CREATE, CALLS, (CONNECTIONS, IN_FLIGHT), body)).await
}

/// Does the same in batches: each connection has one call of [`IN_FLIGHT`] sessions in flight.
async fn create_batches(server: &Server, round: u64) -> Cost {
    let body = move |n: u64| {
        let first = ((ROUNDS + round) * CALLS + n * IN_FLIGHT as u64) as i64;
        let session_ids = (first..first + IN_FLIGHT as i64).collect();
        framed(&BatchCreateSessionsRequest { session_ids, ..Default::default() })
    };
    let calls = CALLS / IN_FLIGHT as u64;
    measure(server, CALLS, load(server.address, CREATE_BATCH, calls, (CONNECTIONS, 1), body)).await
}

/// Puts keys of sixteen digits, new ones in each round, with a value of one byte.
async fn put(server: &Server, round: u64) -> Cost {
    let calls = CALLS / 10;
    let body = move |n: u64| Bytes::from(format!("\0\0\0\0\x15\x0a\x10{:016}\x12\x01v", round * CALLS + n));
    measure(server, calls, load(server.address, PUT, calls, (CONNECTIONS, IN_FLIGHT), body)).await
}

/// Sets keys, new ones in each round, with `pipeline` commands in flight on each connection at all times.
async fn set(server: &Server, round: u64, connections: usize, pipeline: usize) -> Cost {
    let each = CALLS / connections as u64;
    let work = async {
        let mut running = JoinSet::new();
        for connection in 0..connections as u64 {
            let stream = TcpStream::connect(server.address).await.unwrap();
            running.spawn(set_all(stream, round * CALLS + connection * each, each, pipeline));
        }
        running.join_all().await;
    };
    measure(server, CALLS, work).await
}

async fn set_all(mut stream: TcpStream, first: u64, total: u64, pipeline: usize) {
    const OK: usize = "+OK\r\n".len();
    stream.set_nodelay(true).unwrap();
    let (mut sent, mut read, mut buffer) = (0, 0, vec![0; 16 << 10]);
    while read / OK < total as usize {
        let mut commands = String::new();
        while sent < total && (sent as usize) < read / OK + pipeline {
            commands += &format!("*3\r\n$3\r\nSET\r\n$16\r\n{:016}\r\n$1\r\nv\r\n", first + sent);
            sent += 1;
        }
        stream.write_all(commands.as_bytes()).await.unwrap();
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "the connection was closed");
        read += count;
    }
}

pub(crate) async fn run(report: &mut Report) {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("file:{}", folder.path().join("registry").display());
    let memory = peers::sessiond(&[]);
    let durable = peers::sessiond(&["--storage", &file]);
    let redis = peers::redis_on_disk(folder.path());
    let etcd = peers::etcd(&folder.path().join("etcd"));

    let mut costs: [Vec<Cost>; 6] = Default::default();
    for round in 0..ROUNDS {
        costs[0].push(create(&memory, round).await);
        costs[1].push(create(&durable, round).await);
        if let Some(redis) = &redis {
            costs[2].push(set(redis, 2 * round, CONNECTIONS * IN_FLIGHT, 1).await);
        }
        if let Some(etcd) = &etcd {
            costs[3].push(put(etcd, round).await);
        }
        costs[4].push(create_batches(&durable, round).await);
        if let Some(redis) = &redis {
            costs[5].push(set(redis, 2 * round + 1, CONNECTIONS, IN_FLIGHT).await);
        }
    }
    report.part(
        "Durable creates, 1000 in flight",
        &["server", "server CPU, us per change", "to memory:", "changes per second, median", "best"],
    );
    let least = |costs: &[Cost]| costs.iter().map(|cost| cost.cpu_us).fold(f64::INFINITY, f64::min);
    let names = [
        "sessiond, memory: (not durable), 10 connections x 100",
        "sessiond, file:, 10 connections x 100",
        "Redis SET, appendfsync always, 1000 connections x 1",
        "etcd Put, 10 connections x 100",
        "sessiond, file:, 10 connections x a batch of 100",
        "Redis SET, appendfsync always, 10 connections x a pipeline of 100",
    ];
    for (name, of) in names.iter().zip(&costs) {
        if of.is_empty() {
            report.note(format!("{name}: not installed."));
            continue;
        }
        let mut speeds: Vec<f64> = of.iter().map(|cost| cost.changes_per_second).collect();
        speeds.sort_by(f64::total_cmp);
        report.row(&[
            (*name).to_owned(),
            format!("{:.2}", least(of)),
            format!("{:.2}x", least(of) / least(&costs[0])),
            format!("{:.0}", speeds[speeds.len() / 2]),
            format!("{:.0}", speeds[speeds.len() - 1]),
        ]);
    }
    report.note("The servers take turns for five rounds. All but `memory:` sync to the same disk before they answer.");
}
