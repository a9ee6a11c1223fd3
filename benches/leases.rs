//! Measures what leases cost: `cargo bench --bench leases`.
//!
//! First, a lease of a million sessions expires while another task on the same thread makes calls. The longest poll of
//! the expiring task is the longest that such a call waits for it. Then a hundred thousand leases are granted, kept
//! alive, and left idle. Times are processor time of the thread, so that other load on the machine does not count.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod process;

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use process::processor_time;
use sessiond::{
    session::{DestroyReason, SessionChange, SessionKey},
    storage::{
        LogPoint, Position, SessionStorage,
        memory::{MemoryOptions, MemoryStorage},
    },
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SESSIONS: i64 = 1_000_000;
const LEASES: u32 = 100_000;
const TTL: Duration = Duration::from_secs(1);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    one_lease_of_a_million_sessions().await;
    a_hundred_thousand_leases().await;
}

fn storage() -> Arc<MemoryStorage> {
    Arc::new(MemoryStorage::new(MemoryOptions::default().retain_events(4 * SESSIONS as usize)))
}

/// The longest poll of a future, and the total time of its polls.
#[derive(Clone, Copy, Default)]
struct Polls {
    longest: Duration,
    all: Duration,
}

/// Polls `future` until `until` completes, and times its polls.
async fn timed<F: Future>(mut future: Pin<&mut F>, until: impl Future<Output = ()>) -> Polls {
    let mut until = pin!(until);
    let mut polls = Polls::default();
    poll_fn(|context| {
        let started = processor_time();
        let _ = future.as_mut().poll(context);
        let took = processor_time() - started;
        polls.longest = polls.longest.max(took);
        polls.all += took;
        until.as_mut().poll(context)
    })
    .await;
    polls
}

async fn one_lease_of_a_million_sessions() {
    let storage = storage();
    let lease = storage.grant_lease(TTL, "bench").await.unwrap();
    let keys: Vec<SessionKey> = (0..SESSIONS).map(|n| SessionKey::new(0, n)).collect();
    for part in keys.chunks(10_000) {
        storage.create(part, Some(lease)).await.unwrap();
        storage.keep_lease_alive(lease).await.unwrap();
    }
    let other = SessionKey::new(1, 1);
    storage.create(&[other], None).await.unwrap();

    let until_expired = async {
        let mut calls = 0_u64;
        while storage.session_count().await.unwrap() > 1 {
            assert_eq!(storage.has(&[other]).await.unwrap(), [true]);
            calls += 1;
            tokio::task::yield_now().await;
        }
        println!("a lease of {SESSIONS} sessions expired during {calls} HasSession calls");
    };
    let mut expire = pin!(storage.expire_leases());
    let polls = timed(expire.as_mut(), until_expired).await;
    println!("  longest poll {:?}, all polls {:?}", polls.longest, polls.all);

    let log = storage.log().await.unwrap();
    let mut expired = 0;
    let mut after = LogPoint { position: Position(SESSIONS as u64 + 1), ..log.partitions[0].end };
    while expired < SESSIONS {
        let changes = storage.changes_after(log.registry_id, 0, after, 1 << 16).await.unwrap();
        after = after.past(&changes);
        let events = changes.events;
        let is_expired = |change| change == SessionChange::Destroyed(DestroyReason::LeaseExpired);
        assert!(events.iter().all(|event| is_expired(event.change)));
        expired += events.len() as i64;
    }
    println!("  {expired} DESTROYED events, each with LEASE_EXPIRED");
}

async fn a_hundred_thousand_leases() {
    let storage = storage();
    let started = processor_time();
    let mut leases = Vec::new();
    for n in 0..LEASES {
        leases.push(storage.grant_lease(Duration::from_secs(60), &format!("gateway-{n}")).await.unwrap());
    }
    let granted = processor_time();
    for lease in &leases {
        storage.keep_lease_alive(*lease).await.unwrap();
    }
    let kept = processor_time();
    println!(
        "{LEASES} leases: {:?} per grant, {:?} per keep-alive",
        (granted - started) / LEASES,
        (kept - granted) / LEASES
    );
    let mut expire = pin!(storage.expire_leases());
    let polls = timed(expire.as_mut(), tokio::time::sleep(Duration::from_secs(5))).await;
    println!("  during 5 s in which none expires, the expiring task takes {:?}", polls.all);
}
