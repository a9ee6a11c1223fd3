//! Compares sessiond with what people use instead: `cargo bench --bench compare [-- PART…]`.
//!
//! Starts each server on a free loopback port, drives it, and divides the processor time that the *server* took (user
//! and system, from `/proc`) by the work it did. The ratios carry over to other machines, the absolute figures do not.
//! Without a PART, all parts run, and the report is written to `docs/benchmarks.md`.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod batches;
mod calls;
mod cost;
mod durable;
mod fanout;
mod filters;
mod floor;
mod generated;
mod herd;
mod idle;
mod latency;
mod observer;
mod owners;
mod pace;
mod peers;
mod percentile;
mod process;
mod redis;
mod report;
mod resp;
mod snapshot;
#[path = "../process/mod.rs"]
mod used;
mod wire;

use std::env;

use report::Report;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let args: Vec<String> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    // This program also serves the peers that are written here, each in its own process.
    if let [serve, peer, port] = &args[..]
        && serve == "serve"
    {
        return peers::serve(peer, port.parse().unwrap());
    }
    if let [mode, address, observers, cursor] = &args[..]
        && mode == "herd-of"
    {
        return herd::read(address, observers, cursor);
    }
    if let [mode, address] = &args[..]
        && mode == "herd-calls"
    {
        return herd::calls(address);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let [mode, binaries @ ..] = &args[..]
        && mode == "redis-cost"
    {
        return runtime.block_on(cost::run(binaries));
    }
    if let [mode, binaries @ ..] = &args[..]
        && mode == "herd-cost"
    {
        return runtime.block_on(herd::compare(binaries));
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
    if wants("herd") {
        herd::run(&mut report).await;
    }
    if wants("idle") {
        idle::run(&mut report).await;
    }
    if wants("redis") {
        redis::run(&mut report).await;
    }
    report
}
