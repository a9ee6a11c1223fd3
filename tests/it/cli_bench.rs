//! `sessiond bench` against the real server.

use std::time::Duration;

use serde_json::Value;
use sessiond::{
    client::{Client, Watch, WatchOptions, WatchUpdate},
    session::{SessionChange, SessionEvent, SessionId, SessionKey},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::Command,
};
use tonic::Status;

use crate::{
    cli::sessiond,
    fake::{Fake, nowhere, soon},
    program::{Ended, end, run, signal},
    server::Running,
};

/// Returns how many sessions the server has.
async fn sessions(server: &Running) -> u64 {
    let mut watch = Client::connect_lazy(&server.url()).unwrap().watch(WatchOptions::snapshot());
    loop {
        if let WatchUpdate::Synced { session_count, .. } = soon(watch.next()).await.unwrap() {
            return session_count;
        }
    }
}

/// Returns a command for a short run with few sessions.
fn bench(addr: &str, args: &[&str]) -> Command {
    let mut command = sessiond(addr, &[&["bench"], args].concat());
    command.env("SESSIOND_DURATION", "700ms").env("SESSIOND_WARMUP", "100ms").env("SESSIOND_SESSIONS", "4000");
    command
}

/// Starts a watch and waits until it is subscribed, so that it reports every later change.
async fn watch(client: &Client) -> Watch {
    let mut watch = client.watch(WatchOptions::default());
    assert!(matches!(soon(watch.next()).await.unwrap(), WatchUpdate::Subscribed { .. }));
    watch
}

async fn events(watch: &mut Watch) -> Vec<SessionEvent> {
    loop {
        if let WatchUpdate::Events(events) = soon(watch.next()).await.unwrap() {
            return events;
        }
    }
}

/// Waits for the first session that a run destroys. This shows that its calls have started.
async fn first_destroyed(watch: &mut Watch) -> SessionKey {
    loop {
        let events = events(watch).await;
        if let Some(event) = events.iter().find(|event| event.change != SessionChange::Created) {
            return event.session;
        }
    }
}

async fn run_json(addr: &str, args: &[&str]) -> Value {
    let ended = run(bench(addr, &[args, &["--format", "json"]].concat())).await;
    assert_eq!((ended.code, &ended.stderr[..]), (Some(0), ""), "{}", ended.stdout);
    report(&ended)
}

fn report(ended: &Ended) -> Value {
    assert_eq!(ended.stdout.lines().count(), 1, "{}", ended.stdout);
    serde_json::from_str(&ended.stdout).unwrap()
}

fn number(report: &Value, path: &str) -> f64 {
    report.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number {path} in {report}"))
}

/// Asserts what must hold for every report of a run without failures.
fn assert_adds_up(report: &Value) {
    let seconds = number(report, "/measured_seconds");
    for (kind, stats) in report["calls"].as_object().unwrap() {
        let answered = number(stats, "/answered");
        assert!(answered > 0.0, "{kind}: {report}");
        assert_eq!(number(stats, "/latency_us/count"), answered, "{kind}: {report}");
        assert!((number(stats, "/calls_per_second") * seconds - answered).abs() < 0.5, "{kind}: {report}");
        let batch = number(report, "/batch");
        assert!((number(stats, "/sessions_per_second") * seconds - answered * batch).abs() < 0.5, "{kind}: {report}");
        assert!(number(stats, "/yes") <= answered * batch, "{kind}: {report}");
        assert_eq!((&stats["wrong"], &stats["failed"]), (&Value::from(0), &serde_json::json!({})), "{kind}: {report}");
        let latencies =
            ["p50", "p90", "p99", "p99_9", "max"].map(|name| number(&stats["latency_us"], &format!("/{name}")));
        assert!(latencies.is_sorted() && latencies[0] > 0.0, "{kind}: {report}");
    }
    assert_eq!(number(report, "/connections_lost"), 0.0, "{report}");
    if !report["events"].is_null() {
        let (observers, changes) = (number(report, "/events/observers"), number(report, "/changes"));
        assert_eq!(number(report, "/events/observers_complete"), observers, "{report}");
        assert_eq!(number(report, "/events/deliveries_with_warmup"), observers * changes, "{report}");
        assert!(number(report, "/events/deliveries") > 0.0, "{report}");
        for none in ["order_violations", "wrong_sessions", "resets", "observers_lost"] {
            assert_eq!(number(&report["events"], &format!("/{none}")), 0.0, "{report}");
        }
    }
}

#[tokio::test]
async fn a_closed_loop_measures_each_kind_of_call_and_leaves_no_sessions() {
    let server = Running::start().await;
    let client = Client::connect_lazy(&server.url()).unwrap();
    assert!(client.create(SessionKey::new(0, 1)).await.unwrap());
    let report = run_json(&server.url(), &["--threads", "4"]).await;
    assert_adds_up(&report);
    assert_eq!(report["calls"].as_object().unwrap().len(), 3);
    assert!(report["events"].is_null() && report["rate"].is_null(), "{report}");
    assert!(number(&report, "/loader/cpu_us_per_call") > 0.0, "{report}");
    assert_eq!(sessions(&server).await, 1, "sessions that the run did not create stay");
    server.stopped().await;
}

#[tokio::test]
async fn observers_receive_every_change_once_and_in_order() {
    let server = Running::start().await;
    let args =
        ["--calls", "create=1,destroy=1", "--observers", "5", "--observers-per-connection", "2", "--threads", "3"];
    let report = run_json(&server.url(), &args).await;
    assert_adds_up(&report);
    assert!(number(&report, "/events/latency_us/count") > 0.0, "{report}");
    server.stopped().await;
}

#[tokio::test]
async fn batches_count_calls_and_sessions() {
    let server = Running::start().await;
    let args = ["--batch", "20", "--connections", "2", "--in-flight", "3", "--observers", "1"];
    let report = run_json(&server.url(), &args).await;
    assert_adds_up(&report);
    assert!(number(&report, "/calls/create/yes") > number(&report, "/calls/create/answered"), "{report}");
    server.stopped().await;
}

#[tokio::test]
async fn an_open_loop_makes_as_many_calls_as_its_rate_demands() {
    let server = Running::start().await;
    let report = run_json(&server.url(), &["--rate", "500", "--threads", "2", "--observers", "1"]).await;
    assert_adds_up(&report);
    let calls = report["calls"].as_object().unwrap();
    let answered: f64 = calls.values().map(|stats| number(stats, "/answered")).sum();
    // On each thread, one call at the start and one at the end may fall inside or outside the measured time.
    assert!((answered + number(&report, "/unsent") - 350.0).abs() <= 4.0, "{report}");
    server.stopped().await;
}

#[tokio::test]
async fn an_open_loop_measures_latency_from_when_a_call_was_due() {
    let server = Running::start().await;
    let addr = stalling_proxy(&server.url()).await;
    let args = ["--rate", "100", "--connections", "1", "--in-flight", "1", "--calls", "has=1"];
    let report = run_json(&addr, &args).await;
    // About 30 of 70 calls were due during the stall. A closed loop would have measured one slow call.
    assert!(number(&report, "/calls/has/latency_us/p90") > 100_000.0, "{report}");
    assert!(number(&report, "/calls/has/latency_us/max") >= STALL.as_micros() as f64 * 0.9, "{report}");
    server.stopped().await;
}

const STALL: Duration = Duration::from_millis(300);

/// Forwards connections to the server and stalls each of them once after some calls. The first connection, which
/// creates and destroys the sessions of the run, does not stall.
async fn stalling_proxy(to: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = format!("http://{}", listener.local_addr().unwrap());
    let to = to.strip_prefix("http://").unwrap().to_owned();
    tokio::spawn(async move {
        for index in 0.. {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpStream::connect(&to).await.unwrap();
            near.set_nodelay(true).unwrap();
            far.set_nodelay(true).unwrap();
            let ((near_in, mut near_out), (mut far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut far_in, &mut near_out).await });
            tokio::spawn(forward(near_in, far_out, (index > 0).then_some(25)));
        }
    });
    addr
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, stall_after: Option<usize>) {
    let mut chunk = vec![0; 64 << 10];
    for count in 0.. {
        let Ok(len @ 1..) = from.read(&mut chunk).await else { return };
        if stall_after == Some(count) {
            tokio::time::sleep(STALL).await;
        }
        if to.write_all(&chunk[..len]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn the_text_report_is_a_table() {
    let server = Running::start().await;
    let ended = run(bench(&server.url(), &["--observers", "2", "--calls", "create=1,destroy=1"])).await;
    assert_eq!((ended.code, &ended.stderr[..]), (Some(0), ""), "{}", ended.stdout);
    for row in
        ["call ", "create ", "destroy ", "all ", "observers ", "2 of 2 observers received all changes", "loader: "]
    {
        assert!(ended.stdout.lines().any(|line| line.starts_with(row)), "no {row:?} in {}", ended.stdout);
    }
    assert!(!ended.stdout.contains("\nhas "), "{}", ended.stdout);
    server.stopped().await;
}

#[tokio::test]
async fn a_server_that_stops_during_the_run_is_reported() {
    let server = Running::start().await;
    let mut watch = watch(&Client::connect_lazy(&server.url()).unwrap()).await;
    let args = ["--duration", "1h", "--observers", "2", "--threads", "2", "--format", "json"];
    let bench = bench(&server.url(), &args).spawn().unwrap();
    first_destroyed(&mut watch).await;
    server.stopped().await;
    let ended = end(bench).await;
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(ended.stderr.starts_with("sessiond: ") && ended.stderr.lines().count() == 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("10 connections were lost"), "{}", ended.stderr);
    assert!(ended.stderr.contains("are left"), "{}", ended.stderr);
    let report = report(&ended);
    let calls = report["calls"].as_object().unwrap().values();
    let failed: f64 =
        calls.flat_map(|stats| stats["failed"].as_object().unwrap().values()).filter_map(Value::as_f64).sum();
    assert!(failed >= 10.0, "{report}");
    assert_eq!(number(&report, "/connections_lost"), 10.0, "{report}");
    assert_eq!(number(&report, "/events/order_violations"), 0.0, "{report}");
}

#[tokio::test]
#[cfg(unix)]
async fn an_interrupted_run_prints_its_report_and_cleans_up() {
    let server = Running::start().await;
    let mut watch = watch(&Client::connect_lazy(&server.url()).unwrap()).await;
    let args = ["--duration", "1h", "--warmup", "0s", "--format", "json"];
    let bench = bench(&server.url(), &args).spawn().unwrap();
    first_destroyed(&mut watch).await;
    signal(&bench, "INT").await;
    let ended = end(bench).await;
    assert_eq!((ended.code, &ended.stderr[..]), (Some(0), ""));
    let report = report(&ended);
    assert_eq!(report["interrupted"], true);
    assert!(number(&report, "/measured_seconds") < 3600.0, "{report}");
    assert_eq!(sessions(&server).await, 0);
    server.stopped().await;
}

#[tokio::test]
#[cfg(unix)]
async fn wrong_answers_are_detected() {
    let server = Running::start().await;
    let client = Client::connect_lazy(&server.url()).unwrap();
    let mut watch = watch(&client).await;
    let bench = bench(&server.url(), &["--duration", "1h", "--observers", "1", "--format", "json"]).spawn().unwrap();
    let auth_key_id = first_destroyed(&mut watch).await.auth_key_id;
    // To the program, this looks as if the server had lost these sessions.
    let sessions: Vec<_> = (0..4000).map(|id| SessionKey { auth_key_id, session_id: SessionId(id) }).collect();
    client.batch_destroy(&sessions).await.unwrap();
    let mut created = 0;
    while created < 500 {
        let events = events(&mut watch).await;
        created += events.iter().filter(|event| event.change == SessionChange::Created).count();
    }
    signal(&bench, "INT").await;
    let ended = end(bench).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.starts_with("sessiond: the server broke its promises: "), "{}", ended.stderr);
    let report = report(&ended);
    assert!(number(&report, "/calls/destroy/wrong") > 0.0, "{report}");
    assert!(number(&report, "/calls/has/wrong") > 0.0, "{report}");
    server.stopped().await;
}

#[tokio::test]
async fn missing_events_are_detected() {
    let mut fake = Fake::start().await;
    let bench = bench(&fake.addr, &["--observers", "1", "--format", "json"]).spawn().unwrap();
    let _silent = fake.stream().await.accept("c0").await;
    let ended = end(bench).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let needle = "the server broke its promises: 1 observers did not receive exactly the changes that were made";
    assert!(ended.stderr.contains(needle), "{}", ended.stderr);
    let report = report(&ended);
    assert_eq!(number(&report, "/events/observers_complete"), 0.0, "{report}");
    assert_eq!(number(&report, "/events/order_violations"), 0.0, "{report}");
    assert!(number(&report, "/events/wrong_sessions") > 0.0, "{report}");
}

#[tokio::test]
async fn failures_are_counted_by_code() {
    let mut fake = Fake::start().await;
    let args = ["--calls", "create=1,destroy=1", "--observers", "1", "--format", "json"];
    let bench = bench(&fake.addr, &args).spawn().unwrap();
    let call = fake.stream().await;
    // All sessions exist before the first observer subscribes, so the server refuses one of the measured calls.
    fake.refuse(Status::resource_exhausted("too\nmuch"));
    let _silent = call.accept("c0").await;
    let ended = end(bench).await;
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(ended.stderr.contains("1 calls failed, 0 connections were lost"), "{}", ended.stderr);
    assert!(ended.stderr.contains("RESOURCE_EXHAUSTED: too much"), "{}", ended.stderr);
    let report = report(&ended);
    let calls = report["calls"].as_object().unwrap();
    let failed: f64 = calls.values().map(|stats| stats["failed"]["RESOURCE_EXHAUSTED"].as_f64().unwrap_or(0.0)).sum();
    assert_eq!(failed, 1.0, "{report}");
    // It is unknown whether the failed call changed anything, and therefore what observers should have received.
    assert!(report["changes"].is_null() && report["events"]["observers_complete"].is_null(), "{report}");
}

#[tokio::test]
async fn invalid_options_and_unreachable_servers_are_refused() {
    let ended = run(bench(&nowhere().await, &[])).await;
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(ended.stderr.contains("--addr") && ended.stdout.is_empty(), "{}", ended.stderr);
    for (args, needle) in [
        (&["--calls", "watch=1"][..], "write weights"),
        (&["--in-flight", "1000"], "--sessions must be at least 20000"),
        (&["--connections", "0"], "--connections"),
        (&["--duration", "25h"], "24h"),
        (&["--observers", "100000", "--sessions", "100000000"], "GiB"),
    ] {
        let ended = run(bench("http://127.0.0.1:1", args)).await;
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(needle), "{}", ended.stderr);
    }
}
