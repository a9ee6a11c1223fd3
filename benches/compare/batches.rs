//! Batch calls with a thousand sessions each.

use sessiond::proto::{BatchCreateSessionsRequest, BatchDestroySessionsRequest, BatchHasSessionsRequest};

use super::{
    calls::redis_benchmark,
    peers,
    process::{Least, Server, Taken},
    report::Report,
    wire::{framed, load},
};

const BATCH: u64 = 1000;
const BATCHES: u64 = 1000;
const SESSIONS: u64 = BATCH * BATCHES;
const ROUNDS: usize = 5;

pub(crate) async fn run(report: &mut Report) {
    report.part("Batches of 1,000, 10 connections x 1 in flight", &["call", "server CPU, us per session"]);
    let (mut ours, mut redis) = (Least::default(), Least::default());
    for _ in 0..ROUNDS {
        let server = peers::sessiond(&[]);
        let create = |session_ids| {
            framed(&BatchCreateSessionsRequest { session_ids, auth_key_ids: vec![], lease_id: 0, ..Default::default() })
        };
        let has = |session_ids| framed(&BatchHasSessionsRequest { session_ids, auth_key_ids: vec![] });
        let destroy = |session_ids| {
            framed(&BatchDestroySessionsRequest {
                session_ids,
                auth_key_ids: vec![],
                lease_id: 0,
                ..Default::default()
            })
        };
        ours.add(0, batches(&server, "/sessiond.v1.SessionService/BatchCreateSessions", create).await);
        ours.add(1, batches(&server, "/sessiond.v1.SessionService/BatchHasSessions", has).await);
        ours.add(2, batches(&server, "/sessiond.v1.SessionService/BatchDestroySessions", destroy).await);
        drop(server);
        if let Some(server) = peers::redis() {
            for (n, command) in ["SADD", "SISMEMBER", "SREM"].into_iter().enumerate() {
                redis.add(n, redis_benchmark(&server, SESSIONS, 100, &[command, "set", "__rand_int__"]).await);
            }
        }
    }
    let mut rows = |names: [&str; 3], least: &Least| {
        for (what, taken) in names.into_iter().zip(&least.0) {
            report.measured(what, taken, &[format!("{:.3}", taken.us_each(SESSIONS))]);
        }
    };
    rows(["BatchCreateSessions, new", "BatchHasSessions", "BatchDestroySessions"], &ours);
    rows(["Redis SADD, pipeline of 100", "Redis SISMEMBER, pipeline of 100", "Redis SREM, pipeline of 100"], &redis);
    if redis.0.is_empty() {
        report.note("Redis is not installed.");
    }
}

/// Makes a thousand calls with a thousand distinct sessions each.
async fn batches(server: &Server, path: &'static str, body: fn(Vec<i64>) -> bytes::Bytes) -> Taken {
    let ids = |n: u64| (0..BATCH).map(|i| (n * BATCH + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) as i64).collect();
    // Encode the requests before the measurement starts.
    let bodies: Vec<_> = (0..BATCHES).map(|n| body(ids(n))).collect();
    Taken::by(server, load(server.address, path, BATCHES, (10, 1), move |n| bodies[n as usize].clone())).await
}
