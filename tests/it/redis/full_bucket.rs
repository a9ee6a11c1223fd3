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

/// How much more Redis time a sweep may cost if all sessions are in one bucket. A sweep that reads the bucket again at
/// each step costs at least five times as much.
const MAX_RATIO: f64 = 3.0;

/// Fills a registry, revokes a lease, and returns the seconds that the revocation took in Redis.
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
async fn sweeping_a_full_bucket_takes_linear_time() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start(&[]);
    let spread = sweep(&server, 1024).await;
    let full = sweep(&server, 1).await;
    assert!(full < MAX_RATIO * spread, "{full:.3} s in one bucket, {spread:.3} s in 1024");
}
