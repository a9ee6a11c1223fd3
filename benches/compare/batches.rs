//! A thousand sessions a call.

use sessiond::proto::{BatchCreateSessionsRequest, BatchDestroySessionsRequest, BatchHasSessionsRequest};

use super::{
    calls::redis_pipelined,
    grpc::{framed, load},
    peers,
    report::Report,
};

const BATCH: u64 = 1000;
const BATCHES: u64 = 2000;

pub(crate) async fn run(report: &mut Report) {
    report.part("Batches of 1,000, 10 connections x 1 in flight", &["call", "server CPU, us a session"]);
    let server = peers::sessiond(&[]);
    // A million sessions in all, each call a thousand of its own.
    let ids = |n: u64| (0..BATCH).map(|i| (n % 1000 * BATCH + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) as i64).collect();
    let mut row = |what: &str, us: f64| report.row(&[what.to_owned(), format!("{us:.3}")]);
    let cost = async |path, body: fn(Vec<i64>) -> bytes::Bytes, batches: u64| {
        let cpu = server.cpu();
        load(server.address, path, batches, (10, 1), move |n| body(ids(n))).await;
        (server.cpu() - cpu).as_secs_f64() * 1e6 / (batches * BATCH) as f64
    };
    let create = |session_ids| framed(&BatchCreateSessionsRequest { session_ids, auth_key_ids: vec![], lease_id: 0 });
    let has = |session_ids| framed(&BatchHasSessionsRequest { session_ids, auth_key_ids: vec![] });
    let destroy = |session_ids| framed(&BatchDestroySessionsRequest { session_ids, auth_key_ids: vec![], lease_id: 0 });
    row("BatchCreateSessions, new", cost("/sessiond.v1.SessionService/BatchCreateSessions", create, 1000).await);
    row("BatchHasSessions", cost("/sessiond.v1.SessionService/BatchHasSessions", has, BATCHES).await);
    row("BatchDestroySessions", cost("/sessiond.v1.SessionService/BatchDestroySessions", destroy, 1000).await);
    if let Some(redis) = peers::redis() {
        row("Redis SADD, pipeline of 100", redis_pipelined(&redis, &["SADD", "set", "__rand_int__"]).await);
        row("Redis SISMEMBER, pipeline of 100", redis_pipelined(&redis, &["SISMEMBER", "set", "__rand_int__"]).await);
    }
}
