//! Measures the memory per session, and how long growth takes: `cargo bench --bench memory [-- MILLIONS…]`.
//!
//! Fills the memory storage in steps, once without leases and once with every session under one of a thousand leases.
//! After each step it prints the resident memory per session and the longest single create so far. Times are processor
//! time of the thread, so that other load on the machine does not count. Most of the longest create is the kernel
//! handing out new memory, which happens while no lock is held. A test bounds how long a lock is held: `cargo test
//! --release --lib growth -- --nocapture`.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod process;

use std::{env, process::Command, time::Duration};

use process::{processor_time, resident};
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
    let args: Vec<String> = env::args().collect();
    let steps: Vec<usize> = args.iter().filter_map(|arg| arg.parse().ok()).collect();
    let steps = if steps.is_empty() { vec![1, 10, 20, 50] } else { steps };
    let leased = args.iter().any(|arg| arg == LEASED);
    fill(&steps, leased).await;
    if !leased {
        // In a separate process, because the allocator keeps freed memory.
        let again = Command::new(&args[0]).args(&args[1..]).arg(LEASED).status().unwrap();
        assert!(again.success());
    }
}

const LEASED: &str = "--leased";

async fn fill(steps: &[usize], leased: bool) {
    let storage = MemoryStorage::new(MemoryOptions::default().retain_events(4096));
    let mut leases = Vec::new();
    if leased {
        for n in 0..1000 {
            leases.push(storage.grant_lease(Duration::from_secs(86_400), &format!("gateway-{n}")).await.unwrap());
        }
    }
    let before = resident("self");
    let mut longest = Duration::ZERO;
    let mut count = 0;
    for millions in steps {
        let started = processor_time();
        let from = count;
        while count < millions * 1_000_000 {
            // Random ids, as clients choose them.
            let session = SessionKey::new(fastrand::i64(..), fastrand::i64(..));
            let lease = leases.get(count % 1000).copied();
            let one = processor_time();
            storage.create(&[session], lease).await.unwrap();
            longest = longest.max(processor_time() - one);
            count += 1;
        }
        let each = (processor_time() - started).as_nanos() / (count - from).max(1) as u128;
        println!(
            "{millions:>4} million sessions{}: {:5.1} bytes each, {each:4} ns a create, longest create {:6.0} us",
            if leased { ", leased" } else { "        " },
            (resident("self") - before) as f64 / count as f64,
            longest.as_secs_f64() * 1e6,
        );
    }
}
