//! What leases cost: `cargo bench --bench leases`.
//!
//! First a lease of a million sessions expires while another task of the same thread asks for sessions: the longest poll of
//! the task that expires is the longest that anybody waits for it. Then a hundred thousand leases are there at once, kept
//! alive, and idle. Times are processor time of the thread, so that a busy machine does not show its own pauses.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
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
    one_of_a_million().await;
    a_hundred_thousand().await;
}

fn processor_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

fn storage() -> Arc<MemoryStorage> {
    Arc::new(MemoryStorage::new(MemoryOptions { retain_events: 4 * SESSIONS as usize, ..MemoryOptions::default() }))
}

/// The longest poll of a future, and the time of all its polls.
#[derive(Clone, Copy, Default)]
struct Polls {
    longest: Duration,
    all: Duration,
}

/// Polls `future` beside `until`, which ends it.
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

async fn one_of_a_million() {
    let storage = storage();
    let lease = storage.grant_lease(TTL, "bench").await.unwrap();
    let keys: Vec<SessionKey> = (0..SESSIONS).map(|n| SessionKey::new(0, n)).collect();
    for part in keys.chunks(10_000) {
        storage.create(part, Some(lease)).await.unwrap();
        storage.keep_lease_alive(lease).await.unwrap();
    }
    let other = SessionKey::new(1, 1);
    storage.create(&[other], None).await.unwrap();

    let asked = async {
        let mut calls = 0_u64;
        while storage.session_count().await.unwrap() > 1 {
            assert_eq!(storage.has(&[other]).await.unwrap(), [true]);
            calls += 1;
            tokio::task::yield_now().await;
        }
        println!("a lease of {SESSIONS} sessions expired while {calls} calls of HasSession went on");
    };
    let mut expire = pin!(storage.expire_leases());
    let polls = timed(expire.as_mut(), asked).await;
    println!("  the longest poll took {:?}, all together {:?}", polls.longest, polls.all);

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
    println!("  {expired} events told of it, each with LEASE_EXPIRED");
}

async fn a_hundred_thousand() {
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
        "{LEASES} leases: {:?} a grant, {:?} a keep-alive",
        (granted - started) / LEASES,
        (kept - granted) / LEASES
    );
    let mut expire = pin!(storage.expire_leases());
    let polls = timed(expire.as_mut(), tokio::time::sleep(Duration::from_secs(5))).await;
    println!("  in 5 s in which none expires the task that expires them takes {:?}", polls.all);
}
