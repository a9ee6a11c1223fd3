//! A bucket that holds far more sessions than it should.

use std::time::Duration;

use redis::cmd;
use sessiond::session::SessionKey;

use super::{
    ROOMY, open,
    replica::keys,
    server::{RedisServer, is_installed},
};

const LEASED: i64 = 5_000;
const OTHERS: i64 = 30_000;

/// How many times as much of Redis' time the sweep of a lease may cost where all is in one bucket. One that reads the bucket anew for
/// each step costs five times as much or more.
const TIMES: f64 = 3.0;

/// Fills a registry and ends a lease; gives how many seconds of Redis that took.
async fn sweep(server: &RedisServer, buckets: u32) -> f64 {
    let storage = open(&server.url(&format!("registry=r{buckets}&buckets={buckets}")), ROOMY).await;
    let lease = storage.grant_lease(Duration::from_secs(600), "").await.unwrap();
    let create = async |sessions: &[SessionKey], lease| {
        for some in sessions.chunks(5000) {
            storage.create(some, lease).await.unwrap();
        }
    };
    create(&keys(LEASED..LEASED + OTHERS), None).await;
    create(&keys(0..LEASED), Some(lease)).await;
    let () = server.ask(cmd("CONFIG").arg("RESETSTAT")).unwrap();
    assert_eq!(storage.revoke_lease(lease).await.unwrap(), LEASED as u64);
    let took = |command: &str| {
        let stats = server.info("commandstats", &format!("cmdstat_{command}")).unwrap_or_default();
        let usec = stats.split(',').find_map(|field| field.strip_prefix("usec="));
        usec.map_or(0.0, |usec| usec.parse::<f64>().unwrap() / 1e6)
    };
    ["evalsha", "eval", "fcall"].into_iter().map(took).sum()
}

#[tokio::test]
async fn a_full_bucket_makes_no_sweep_quadratic() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let spread = sweep(&server, 1024).await;
    let full = sweep(&server, 1).await;
    assert!(full < TIMES * spread, "{full:.3} s in one bucket, {spread:.3} s in 1024");
}
