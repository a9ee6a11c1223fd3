//! Benchmarks of the individual hot paths: `cargo bench --bench hot_paths`.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{hint::black_box, sync::Arc};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use sessiond::{
    service::WireEncoder,
    session::SessionKey,
    storage::{
        SessionStorage,
        memory::{MemoryOptions, MemoryStorage},
    },
    subject::{ObserveOptions, Observer, SessionSubject, SubjectOptions, Update},
};
use tokio::runtime::{Builder, Runtime};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Enough sessions to exceed the processor's caches.
const SESSIONS: i64 = 1_000_000;
/// The most changes that the subject publishes in one chunk.
const BATCH: i64 = 2400;

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn storage() -> Arc<MemoryStorage> {
    Arc::new(MemoryStorage::new(MemoryOptions::default().retain_events(100_000)))
}

fn key(n: i64) -> SessionKey {
    SessionKey::new(0, n.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64))
}

fn storage_operations(criterion: &mut Criterion) {
    let (runtime, storage) = (runtime(), storage());
    let keys: Vec<SessionKey> = (0..SESSIONS).map(key).collect();
    runtime.block_on(storage.create(&keys, None)).unwrap();
    let mut group = criterion.benchmark_group("storage");
    let mut n = 0;
    let mut next = || {
        n = (n + 1) % SESSIONS;
        key(n)
    };
    group.bench_function("has", |bench| {
        bench.iter(|| runtime.block_on(storage.has(black_box(&[next()]))).unwrap());
    });
    group.bench_function("destroy and create", |bench| {
        bench.iter(|| {
            let session = [next()];
            runtime.block_on(storage.destroy(&session, None)).unwrap();
            runtime.block_on(storage.create(&session, None)).unwrap();
        });
    });
    group.throughput(Throughput::Elements(1000));
    group.bench_function("has, a batch of 1000", |bench| {
        let batch = || (0..1000).map(|_| next()).collect::<Vec<_>>();
        bench.iter_batched(batch, |batch| runtime.block_on(storage.has(&batch)).unwrap(), BatchSize::SmallInput);
    });
    group.finish();
}

async fn subject() -> SessionSubject {
    let options = SubjectOptions::default().retain_events(100_000);
    SessionSubject::start(storage(), options, WireEncoder).await.unwrap()
}

/// Reads until the observer has received `count` events.
async fn read(observer: &mut Observer, count: usize) {
    let mut seen = 0;
    while seen < count {
        if let Some(Update::Events(events)) = observer.next().await {
            seen += events.events().len();
            black_box(events.wire());
        }
    }
}

/// Measures a change from the storage's log to the observers: the follower reads it, encodes it and appends it to its
/// log, and each observer takes it.
fn log_and_fan_out(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("log append and fan-out");
    for observers in [1, 100] {
        let subject = runtime.block_on(subject());
        let mut streams: Vec<Observer> =
            (0..observers).map(|_| runtime.block_on(subject.observe(ObserveOptions::default())).unwrap()).collect();
        let keys: Vec<SessionKey> = (0..BATCH).map(key).collect();
        let count = 2 * keys.len();
        group.throughput(Throughput::Elements(count as u64 * observers));
        group.bench_function(format!("{observers} observers, {BATCH} creates and destroys"), |bench| {
            bench.iter(|| {
                runtime.block_on(async {
                    subject.create(&keys, None).await.unwrap();
                    subject.destroy(&keys, None).await.unwrap();
                    for stream in &mut streams {
                        read(stream, count).await;
                    }
                });
            });
        });
    }
    group.finish();
}

fn snapshot(criterion: &mut Criterion) {
    let runtime = runtime();
    let subject = runtime.block_on(subject());
    let keys: Vec<SessionKey> = (0..SESSIONS).map(key).collect();
    runtime.block_on(subject.create(&keys, None)).unwrap();
    let mut group = criterion.benchmark_group("snapshot");
    group.throughput(Throughput::Elements(SESSIONS as u64)).sample_size(10);
    group.bench_function("a million sessions", |bench| {
        bench.iter(|| {
            runtime.block_on(async {
                let options = ObserveOptions::snapshot();
                let mut observer = subject.observe(options).await.unwrap();
                let mut count = 0;
                loop {
                    match observer.next().await {
                        Some(Update::Snapshot(sessions)) => count += sessions.sessions().len(),
                        Some(Update::Synced { .. }) => break,
                        _ => {}
                    }
                }
                assert_eq!(count, keys.len());
            });
        });
    });
    group.finish();
}

criterion_group!(benches, storage_operations, log_and_fan_out, snapshot);
criterion_main!(benches);
