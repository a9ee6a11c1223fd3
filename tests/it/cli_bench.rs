//! `sessiond bench` against the real server.

use std::{
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use sessiond::{
    client::{Client, WatchOptions, WatchUpdate},
    server::{Server, ServerConfig},
    subject::SubjectOptions,
};
use tokio::{
    net::TcpListener,
    process::Command,
    sync::{Notify, oneshot},
    task::JoinHandle,
};

use crate::fake::{Fake, nowhere, soon};

/// A server in this process.
struct Running {
    addr: String,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Running {
    async fn start() -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let config = ServerConfig {
            listen: any,
            admin_listen: any,
            storage: "memory:".parse().unwrap(),
            workers: NonZeroUsize::MIN,
            subject: SubjectOptions::default(),
            max_sessions: 1_000_000,
            max_leases: 10,
            max_connections: 1000,
            max_streams: 1000,
            max_message_bytes: 4 << 20,
            drain_timeout: Duration::from_millis(100),
        };
        let server = Server::bind(config).await.unwrap();
        let addr = format!("http://{}", server.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(async move { server.run(async { drop(stopped.await) }).await.unwrap() });
        Self { addr, stop, server }
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        soon(self.server).await.unwrap();
    }

    /// How many sessions there are.
    async fn sessions(&self) -> u64 {
        let mut watch = Client::connect_lazy(&self.addr).unwrap().watch(WatchOptions::snapshot());
        loop {
            if let WatchUpdate::Synced { session_count, .. } = soon(watch.next()).await.unwrap() {
                return session_count;
            }
        }
    }
}

/// Few sessions and a short time.
fn bench(addr: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessiond"));
    command.env_clear().env("SESSIOND_ADDR", addr);
    command.env("SESSIOND_DURATION", "700ms").env("SESSIOND_WARMUP", "100ms").env("SESSIOND_SESSIONS", "4000");
    command.arg("bench").args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

async fn run(mut command: Command) -> Ended {
    let output = soon(command.output()).await.unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
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

/// What must hold of every report of a run in which nothing failed.
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
        let latencies = ["p50", "p90", "p99", "p99_9", "max"].map(|name| number(&stats["latency_us"], &format!("/{name}")));
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
async fn a_closed_loop_measures_each_kind_of_call_and_leaves_nothing() {
    let server = Running::start().await;
    let client = Client::connect_lazy(&server.addr).unwrap();
    assert!(client.create(sessiond::session::SessionKey::new(0, 1)).await.unwrap());
    let report = run_json(&server.addr, &[]).await;
    assert_adds_up(&report);
    assert_eq!(report["calls"].as_object().unwrap().len(), 3);
    assert!(report["events"].is_null() && report["rate"].is_null(), "{report}");
    assert!(number(&report, "/loader/cpu_us_per_call") > 0.0, "{report}");
    assert_eq!(server.sessions().await, 1, "a session of somebody else stays");
    server.stop().await;
}

#[tokio::test]
async fn observers_hear_of_every_change_once_and_in_order() {
    let server = Running::start().await;
    let args = ["--calls", "create=1,destroy=1", "--observers", "5", "--observers-per-connection", "2", "--threads", "3"];
    let report = run_json(&server.addr, &args).await;
    assert_adds_up(&report);
    assert!(number(&report, "/events/latency_us/count") > 0.0, "{report}");
    server.stop().await;
}

#[tokio::test]
async fn batches_count_calls_and_sessions() {
    let server = Running::start().await;
    let args = ["--batch", "20", "--connections", "2", "--in-flight", "3", "--observers", "1"];
    let report = run_json(&server.addr, &args).await;
    assert_adds_up(&report);
    assert!(number(&report, "/calls/create/yes") > number(&report, "/calls/create/answered"), "{report}");
    server.stop().await;
}

#[tokio::test]
async fn an_open_loop_makes_the_calls_that_are_due() {
    let server = Running::start().await;
    let report = run_json(&server.addr, &["--rate", "500", "--threads", "2", "--observers", "1"]).await;
    assert_adds_up(&report);
    let calls = report["calls"].as_object().unwrap();
    let answered: f64 = calls.values().map(|stats| number(stats, "/answered")).sum();
    // One arrival may fall on either side of either end, on each of the threads.
    assert!((answered + number(&report, "/unsent") - 350.0).abs() <= 4.0, "{report}");
    server.stop().await;
}

#[tokio::test]
async fn an_open_loop_charges_the_server_for_the_calls_that_it_kept_waiting() {
    let fake = Fake::start().await;
    let stalled = Arc::new(Notify::new());
    // One call in flight, and a network that holds everything back for 300 ms.
    let addr = stalling_proxy(&fake.addr, Arc::clone(&stalled)).await;
    let args = ["--rate", "100", "--connections", "1", "--in-flight", "1", "--calls", "has=1", "--warmup", "1ms"];
    let (report, ()) = tokio::join!(run_json(&addr, &args), stalled.notified());
    // About 30 calls were due meanwhile, of 70; a closed loop would have seen one slow call.
    assert!(number(&report, "/calls/has/latency_us/p90") > 100_000.0, "{report}");
    assert!(number(&report, "/calls/has/latency_us/max") >= 290_000.0, "{report}");
}

/// Forwards connections; the third, which is the first one that calls are made over after that of the client which creates
/// the sessions, is silent for 300 ms once bytes of a call have come.
async fn stalling_proxy(to: &str, stalled: Arc<Notify>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = format!("http://{}", listener.local_addr().unwrap());
    let to = to.strip_prefix("http://").unwrap().to_owned();
    tokio::spawn(async move {
        for index in 0.. {
            let (near, _) = listener.accept().await.unwrap();
            near.set_nodelay(true).unwrap();
            let far = tokio::net::TcpStream::connect(&to).await.unwrap();
            far.set_nodelay(true).unwrap();
            let stalled = Arc::clone(&stalled);
            tokio::spawn(async move {
                let ((mut near_in, mut near_out), (mut far_in, mut far_out)) = (near.into_split(), far.into_split());
                tokio::spawn(async move { tokio::io::copy(&mut far_in, &mut near_out).await });
                if index > 0 {
                    // The preface and the settings come first, then the calls.
                    let mut chunk = [0; 4096];
                    for chunks in 0.. {
                        let Ok(len @ 1..) = tokio::io::AsyncReadExt::read(&mut near_in, &mut chunk).await else { return };
                        if chunks == 10 {
                            tokio::time::sleep(Duration::from_millis(300)).await;
                            stalled.notify_one();
                        }
                        if tokio::io::AsyncWriteExt::write_all(&mut far_out, &chunk[..len]).await.is_err() {
                            return;
                        }
                    }
                }
                let _ = tokio::io::copy(&mut near_in, &mut far_out).await;
            });
        }
    });
    addr
}

#[tokio::test]
async fn text_is_a_table_for_people() {
    let server = Running::start().await;
    let ended = run(bench(&server.addr, &["--observers", "2", "--calls", "create=1,destroy=1"])).await;
    assert_eq!((ended.code, &ended.stderr[..]), (Some(0), ""), "{}", ended.stdout);
    for row in ["call ", "create ", "destroy ", "all ", "observers ", "2 of 2 observers heard of all changes", "loader: "] {
        assert!(ended.stdout.lines().any(|line| line.starts_with(row)), "no {row:?} in {}", ended.stdout);
    }
    assert!(!ended.stdout.contains("\nhas "), "{}", ended.stdout);
    server.stop().await;
}

#[tokio::test]
async fn a_server_that_goes_away_is_reported() {
    let server = Running::start().await;
    let client = Client::connect_lazy(&server.addr).unwrap();
    let mut watch = client.watch(WatchOptions::default());
    let args = ["--duration", "1h", "--observers", "2", "--threads", "2", "--format", "json"];
    let mut bench = bench(&server.addr, &args).spawn().unwrap();
    // The first half of the sessions is created in one message or a few; what is destroyed is destroyed by calls.
    loop {
        if let WatchUpdate::Events(events) = soon(watch.next()).await.unwrap()
            && events.iter().any(|event| event.change != sessiond::session::SessionChange::Created)
        {
            break;
        }
    }
    server.stop().await;
    let mut ended = Ended { code: soon(bench.wait()).await.unwrap().code(), stdout: String::new(), stderr: String::new() };
    read_all(bench.stdout.take(), &mut ended.stdout).await;
    read_all(bench.stderr.take(), &mut ended.stderr).await;
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(ended.stderr.starts_with("sessiond: ") && ended.stderr.lines().count() == 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("calls failed, 10 connections were lost and 2 streams ended"), "{}", ended.stderr);
    let report = report(&ended);
    let calls = report["calls"].as_object().unwrap();
    let failed: f64 = calls.values().flat_map(|stats| stats["failed"].as_object().unwrap().values()).filter_map(Value::as_f64).sum();
    assert!(failed >= 1.0, "{report}");
    assert_eq!(number(&report, "/events/order_violations"), 0.0, "{report}");
    assert!(report["changes"].is_null() || number(&report, "/changes") > 0.0, "{report}");
}

async fn read_all(pipe: Option<impl tokio::io::AsyncRead + Unpin>, text: &mut String) {
    tokio::io::AsyncReadExt::read_to_string(&mut pipe.unwrap(), text).await.unwrap();
}

#[tokio::test]
#[cfg(unix)]
async fn an_interrupt_ends_the_run_with_its_report_and_cleans_up() {
    let server = Running::start().await;
    let mut watch = Client::connect_lazy(&server.addr).unwrap().watch(WatchOptions::default());
    // Subscribed, so that the calls below are seen.
    soon(watch.next()).await.unwrap();
    let args = ["--duration", "1h", "--warmup", "0s", "--format", "json"];
    let mut bench = bench(&server.addr, &args).spawn().unwrap();
    loop {
        if let WatchUpdate::Events(events) = soon(watch.next()).await.unwrap()
            && events.iter().any(|event| event.change != sessiond::session::SessionChange::Created)
        {
            break;
        }
    }
    let pid = bench.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-s", "INT", &pid]).status().await.unwrap().success());
    let mut ended = Ended { code: soon(bench.wait()).await.unwrap().code(), stdout: String::new(), stderr: String::new() };
    read_all(bench.stdout.take(), &mut ended.stdout).await;
    read_all(bench.stderr.take(), &mut ended.stderr).await;
    assert_eq!((ended.code, &ended.stderr[..]), (Some(0), ""));
    let report = report(&ended);
    assert_eq!(report["interrupted"], true);
    assert!(number(&report, "/measured_seconds") < 3600.0, "{report}");
    assert_eq!(server.sessions().await, 0);
    server.stop().await;
}

#[tokio::test]
async fn a_server_that_is_wrong_is_found_out() {
    let fake = Fake::start().await;
    // It creates what others created, and so answers wrongly to some of them.
    let forgetful = tokio::spawn({
        let client = Client::connect_lazy(&fake.addr).unwrap();
        async move { drop(client) }
    });
    forgetful.await.unwrap();
    fake.forget_on_has();
    let ended = run(bench(&fake.addr, &["--calls", "has=1,destroy=1", "--format", "json"])).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.starts_with("sessiond: the server broke its promises: "), "{}", ended.stderr);
    let report = report(&ended);
    assert!(number(&report, "/calls/destroy/wrong") > 0.0, "{report}");
}

#[tokio::test]
async fn what_cannot_be_run_is_refused() {
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
