//! Measures a mirror of the client against the memory storage that it mirrors: `cargo bench --bench mirror [--
//! MILLIONS]`.
//!
//! Fills the memory storage of a server in this process, then mirrors it over a socket on a thread of its own. Prints
//! the memory per session of both, how fast the mirror read its snapshot, and what a lookup costs in both. Lookups are
//! of random sessions that exist, and their times are processor time of the thread.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod process;

use std::{env, hint::black_box, net::SocketAddr, process::Command, sync::Arc, thread, time::Duration};

use process::{processor_time, resident};
use sessiond::{
    client::{Client, Mirror, MirrorOptions},
    server::{Server, ServerConfig},
    session::SessionKey,
    storage::{
        SessionStorage,
        memory::{MemoryOptions, MemoryStorage},
    },
};
use tokio::{runtime, sync::oneshot};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const LEASES: usize = 1000;
const LOOKUPS: usize = 2_000_000;

fn main() {
    let args: Vec<String> = env::args().collect();
    let millions = args.iter().find_map(|arg| arg.parse::<usize>().ok()).unwrap_or(10);
    let is_leased = args.iter().any(|arg| arg == LEASED);
    measure(millions * 1_000_000, is_leased);
    if !is_leased {
        // In a separate process, because the allocator keeps freed memory.
        let again = Command::new(&args[0]).args(&args[1..]).arg(LEASED).status().unwrap();
        assert!(again.success());
    }
}

const LEASED: &str = "--leased";

fn measure(count: usize, is_leased: bool) {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let storage = Arc::new(MemoryStorage::new(MemoryOptions::default().retain_events(4096)));
    let before = resident("self");
    let sample = runtime.block_on(fill(&storage, count, is_leased));
    let stored = resident("self") - before;

    let addr = serve(Arc::clone(&storage));
    let before = resident("self");
    let (mirror, wall, processor) = synced(addr);
    assert_eq!(mirror.len(), count);
    let mirrored = resident("self") - before;

    let each = |bytes: u64| bytes as f64 / count as f64;
    println!("{count} sessions{}", if is_leased { " under 1000 leases" } else { "" });
    println!(
        "  memory: {:.1} bytes in the storage, {:.1} in the mirror: {:.2}x",
        each(stored),
        each(mirrored),
        mirrored as f64 / stored as f64
    );
    println!(
        "  snapshot: {:.1} M sessions/s over the socket, {:.1} M per second of the mirror's processor time",
        count as f64 / wall.as_secs_f64() / 1e6,
        count as f64 / processor.as_secs_f64() / 1e6,
    );
    let of_storage = runtime.block_on(async {
        let mut best = f64::MAX;
        for _ in 0..3 {
            let began = processor_time();
            for session in sample.iter().cycle().take(LOOKUPS) {
                assert!(storage.has(&[*session]).await.unwrap()[0]);
            }
            best = best.min(each_of(began));
        }
        best
    });
    let of_mirror = |look: &dyn Fn(&SessionKey)| {
        let times = (0..3).map(|_| {
            let began = processor_time();
            sample.iter().cycle().take(LOOKUPS).for_each(look);
            each_of(began)
        });
        times.fold(f64::MAX, f64::min)
    };
    let has = of_mirror(&|session| assert!(mirror.has(*session)));
    let holder = of_mirror(&|session| drop(black_box(mirror.holder_of(*session))));
    println!("  lookup: {of_storage:.0} ns in the storage, {has:.0} ns in the mirror: {:.2}x", has / of_storage);
    println!("  holder_of: {holder:.0} ns");
}

/// Creates sessions with random ids, as clients choose them. Returns some of them.
async fn fill(storage: &MemoryStorage, count: usize, is_leased: bool) -> Vec<SessionKey> {
    let mut leases = Vec::new();
    for n in 0..if is_leased { LEASES } else { 0 } {
        leases.push(storage.grant_lease(Duration::from_secs(86_400), &format!("gateway-{n}")).await.unwrap());
    }
    let mut sample = Vec::new();
    for n in 0..count / 1000 {
        let sessions: Vec<_> = (0..1000).map(|_| SessionKey::new(fastrand::i64(..), fastrand::i64(..))).collect();
        storage.create(&sessions, leases.get(n % LEASES).copied()).await.unwrap();
        sample.extend(&sessions[..(LOOKUPS / (count / 1000)).clamp(1, 1000)]);
    }
    fastrand::shuffle(&mut sample);
    sample
}

/// Starts a server on a thread of its own.
fn serve(storage: Arc<MemoryStorage>) -> SocketAddr {
    let (bound, addr) = oneshot::channel();
    thread::spawn(move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
            let storage: Arc<dyn SessionStorage> = storage;
            let config = ServerConfig::new(storage).listen(any_port).admin_listen(any_port);
            let server = Server::bind(config).await.unwrap();
            bound.send(server.local_addr().unwrap()).unwrap();
            server.run(std::future::pending()).await.unwrap();
        });
    });
    addr.blocking_recv().unwrap()
}

/// Reads a mirror's snapshot on a thread of its own. Returns the wall time and the processor time that this took.
fn synced(addr: SocketAddr) -> (Mirror, Duration, Duration) {
    let (done, result) = oneshot::channel();
    thread::spawn(move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mirror = Client::connect_lazy(&format!("http://{addr}")).unwrap().mirror(MirrorOptions::default());
            let (began, processor) = (std::time::Instant::now(), processor_time());
            mirror.synced().await.unwrap();
            drop(done.send((mirror, began.elapsed(), processor_time() - processor)));
            std::future::pending::<()>().await;
        });
    });
    result.blocking_recv().unwrap()
}

fn each_of(began: Duration) -> f64 {
    (processor_time() - began).as_nanos() as f64 / LOOKUPS as f64
}
