//! sessiond beside what people use instead: `cargo bench --bench compare [-- PART…]`.
//!
//! Starts each server on a free port of the loopback, drives it, and divides the processor time that the *server* took (user
//! and system, from `/proc`) by what it did. Ratios hold from machine to machine; the absolute figures are those of this one.
//! Without a part all are run, and `docs/benchmarks.md` is written.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod batches;
mod calls;
mod cost;
mod durable;
mod fanout;
mod filters;
mod floor;
mod idle;
mod latency;
mod observer;
mod owners;
mod peers;
mod ping;
mod process;
mod redis;
mod report;
mod resp;
mod snapshot;
mod wire;

use std::env;

use report::Report;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let args: Vec<String> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    // The peers that are servers of our own run as processes of their own.
    if let [serve, peer, port] = &args[..]
        && serve == "serve"
    {
        return peers::serve(peer, port.parse().unwrap());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let [mode, binaries @ ..] = &args[..]
        && mode == "redis-cost"
    {
        return runtime.block_on(cost::run(binaries));
    }
    let report = runtime.block_on(run(&args));
    if args.is_empty() {
        report.write("docs/benchmarks.md");
    }
}

async fn run(parts: &[String]) -> Report {
    let mut report = Report::new();
    let wants = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    if wants("calls") {
        calls::run(&mut report).await;
    }
    if wants("batches") {
        batches::run(&mut report).await;
    }
    if wants("durable") {
        durable::run(&mut report).await;
    }
    if wants("fanout") {
        fanout::run(&mut report).await;
    }
    if wants("owners") {
        owners::run(&mut report).await;
    }
    if wants("latency") {
        latency::run(&mut report).await;
    }
    if wants("filters") {
        filters::run(&mut report).await;
    }
    if wants("snapshot") {
        snapshot::run(&mut report).await;
    }
    if wants("idle") {
        idle::run(&mut report).await;
    }
    if wants("redis") {
        redis::run(&mut report).await;
    }
    report
}
