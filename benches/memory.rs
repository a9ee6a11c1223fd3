//! What a session costs in memory, and how long growing takes: `cargo bench --bench memory [-- MILLIONS…]`.
//!
//! Fills the memory storage step by step, every session under one of a thousand leases, and prints for each step the
//! resident memory a session and the longest single create so far. The longest create holds the longest lock: that of a
//! bucket whose table grows. It is measured in wall time, so on a busy machine it is an upper bound.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    fs,
    time::{Duration, Instant},
};

use sessiond::{
    session::SessionKey,
    storage::{
        SessionStorage,
        memory::{MemoryOptions, MemoryStorage},
    },
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let millions: Vec<usize> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    let steps = if millions.is_empty() { vec![1, 10, 20, 50] } else { millions };
    for leased in [false, true] {
        fill(&steps, leased).await;
    }
}

async fn fill(steps: &[usize], leased: bool) {
    let storage = MemoryStorage::new(MemoryOptions { retain_events: 4096, ..MemoryOptions::default() });
    let mut leases = Vec::new();
    if leased {
        for n in 0..1000 {
            leases.push(storage.grant_lease(Duration::from_secs(86_400), &format!("gateway-{n}")).await.unwrap());
        }
    }
    let before = resident();
    let mut longest = Duration::ZERO;
    let mut count = 0;
    for millions in steps {
        let started = Instant::now();
        let from = count;
        while count < millions * 1_000_000 {
            // Ids as clients choose them: by chance.
            let session = SessionKey::new(fastrand::i64(..), fastrand::i64(..));
            let lease = leases.get(count % 1000).copied();
            let one = Instant::now();
            storage.create(&[session], lease).await.unwrap();
            longest = longest.max(one.elapsed());
            count += 1;
        }
        let each = started.elapsed().as_nanos() / (count - from).max(1) as u128;
        println!(
            "{millions:>4} million sessions{}: {:5.1} bytes each, {each:4} ns a create, longest create {:6.0} us",
            if leased { ", leased" } else { "        " },
            (resident() - before) as f64 / count as f64,
            longest.as_secs_f64() * 1e6,
        );
    }
}

fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
