//! Reasons why the server does not start or waits, and how it reports them.

use std::{
    net::SocketAddr,
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::Value;
use sessiond::{
    session::SessionKey,
    storage::{SessionStorage as _, StorageOptions, file::FileStorage},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStderr, Command},
};

use crate::{
    fake::{nowhere, soon},
    program::{Program, fails, get, serve},
    redis::server::{RedisServer, is_installed},
};

#[tokio::test]
async fn the_error_for_a_port_in_use_names_the_port_and_the_flag() {
    let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    for (listen, admin, flag) in [(&*taken, "127.0.0.1:0", "listen"), ("127.0.0.1:0", &*taken, "admin-listen")] {
        let (code, stderr) = fails(serve(&["--listen", listen, "--admin-listen", admin])).await;
        assert_eq!(code, Some(4), "{stderr}");
        assert!(stderr.starts_with(&format!("sessiond: cannot listen on {taken} (")), "{stderr}");
        assert!(stderr.ends_with(&format!("choose another address: see --{flag}\n")), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[tokio::test]
async fn listening_on_an_address_of_another_machine_fails() {
    // No host has an address in TEST-NET-1.
    let (code, stderr) = fails(serve(&["--listen", "192.0.2.1:0"])).await;
    assert_eq!((code, stderr.lines().count()), (Some(4), 1), "{stderr}");
    assert!(stderr.contains("--listen"), "{stderr}");
}

#[tokio::test]
async fn errors_in_flags_and_variables_say_what_would_be_valid() {
    let table: [(&[&str], &str); 15] = [
        (&["--nonsense"], "--nonsense"),
        (&["--listen", "localhost"], "--listen <ADDR>"),
        (&["--storage", "mysql://h"], "mysql:// does not name a storage: write memory:"),
        (&["--storage", ""], "--storage"),
        (&["--storage-wait", "soon"], "--storage-wait <DURATION>"),
        (&["--outage-grace", "0s"], "--outage-grace <DURATION>"),
        (&["--workers", "0"], "--workers <N>"),
        (&["--max-observers", "0"], "--max-observers <N>"),
        (&["--max-message-bytes", "1"], "1024..="),
        (&["--max-batch", "65537"], "1..=65536"),
        (&["--rate-burst", "5"], "--rate-limit"),
        (&["--call-timeout", "0s"], "--call-timeout <DURATION>"),
        (&["--drain-timeout", "soon"], "--drain-timeout <DURATION>"),
        (&["--log-format", "xml"], "text, json"),
        (&["--log", "a=b=c"], "--log"),
    ];
    for (args, says) in table {
        let (code, stderr) = fails(serve(args)).await;
        assert_eq!(code, Some(2), "{args:?}: {stderr}");
        let first = stderr.lines().next().unwrap_or_default();
        assert!(stderr.contains(says), "{args:?}: {stderr}");
        assert!(first.starts_with("error: ") || first.starts_with("sessiond: "), "{args:?}: {stderr}");
    }
    let mut command = serve(&[]);
    command.env("SESSIOND_STORAGE", "disk");
    let (code, stderr) = fails(command).await;
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("the URL does not name a storage: write memory:"), "{stderr}");
}

/// A server that may still be waiting for its storage.
struct Starting {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
    admin: SocketAddr,
}

impl Starting {
    async fn with(args: &[&str]) -> Self {
        let ports = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--log-format", "json"];
        let mut child = serve(&[&ports, args].concat()).spawn().expect("the program starts");
        let lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        let mut starting = Self { child, lines, admin: SocketAddr::from(([0; 4], 0)) };
        let opening = starting.logs("opening the storage").await;
        starting.admin = opening["admin_address"].as_str().expect("the line has the admin address").parse().unwrap();
        starting
    }

    /// Reads the log up to a message. Returns the message's fields.
    async fn logs(&mut self, message: &str) -> Value {
        let reading = async {
            loop {
                let line = self.lines.next_line().await.unwrap();
                let line = line.unwrap_or_else(|| panic!("the server exited without logging {message:?}"));
                let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
                assert_ne!(line["level"], "ERROR", "{line}");
                if line["fields"]["message"] == message {
                    return line["fields"].clone();
                }
            }
        };
        soon(reading).await
    }

    /// Ends the server with one SIGTERM.
    async fn terminates(mut self) {
        self.terminates_after(1).await;
    }

    async fn terminates_after(&mut self, signals: usize) {
        let pid = self.child.id().expect("the server is running").to_string();
        let began = Instant::now();
        for _ in 0..signals {
            // The server may be gone after the first signal.
            let killed = soon(Command::new("kill").arg(&pid).stderr(Stdio::null()).status()).await;
            assert!(killed.expect("kill is installed").success() || signals > 1);
        }
        assert!(matches!(soon(self.child.wait()).await.unwrap().code(), Some(0 | 1)));
        assert!(began.elapsed() < Duration::from_secs(2), "the server took {:?} to exit", began.elapsed());
    }
}

const WAITS: &str = "the storage cannot be opened yet; waiting for it";

/// Returns a URL at which no Redis is running.
async fn no_redis() -> String {
    format!("{}/?timeout_ms=200", nowhere().await.replace("http://", "redis://:s3cret@"))
}

#[tokio::test]
async fn a_server_waits_for_its_redis_and_reports_what_it_waits_for() {
    let mut starting = Starting::with(&["--storage", &no_redis().await]).await;
    let waits = starting.logs(WAITS).await;
    assert!(waits["error"].as_str().unwrap().contains("cannot be opened"), "{waits}");
    assert_eq!(get(starting.admin, "/live").await.status, 200);
    for path in ["/ready", "/writable"] {
        let page = get(starting.admin, path).await;
        assert_eq!(page.status, 503);
        assert!(page.body.starts_with("waiting for the storage: redis://"), "{}", page.body);
        assert!(!page.body.contains("s3cret"), "{}", page.body);
    }
    let page = get(starting.admin, "/metrics").await;
    assert_eq!(page.status, 200);
    for line in ["sessiond_storage_up 0", "sessiond_storage_writable{cause=\"unreachable\"} 0"] {
        assert!(page.body.lines().any(|found| found == line), "{line}:\n{}", page.body);
    }
    assert!(page.body.contains("process_open_fds"), "{}", page.body);
    starting.terminates().await;
}

#[tokio::test]
async fn a_waiting_server_serves_as_soon_as_redis_is_up() {
    if !is_installed() {
        return;
    }
    let mut redis = RedisServer::start(&[]);
    redis.kill();
    let storage = redis.url("timeout_ms=200");
    let mut starting = Starting::with(&["--storage", &storage, "--log", "info,sessiond::server=debug"]).await;
    starting.logs(WAITS).await;
    for _ in 0..2 {
        starting.logs("the storage still cannot be opened").await;
    }
    redis.restart();
    // The log says only once that the server waits, however often it has tried.
    let mut messages = Vec::new();
    let listening = loop {
        let line = soon(starting.lines.next_line()).await.unwrap().expect("the server listens eventually");
        let line: Value = serde_json::from_str(&line).unwrap();
        messages.push(line["fields"]["message"].as_str().unwrap().to_owned());
        if messages.last().unwrap() == "listening" {
            break line;
        }
    };
    assert!(!messages.iter().any(|message| message == WAITS), "{messages:?}");
    assert!(messages.iter().any(|message| message == "the storage is open"), "{messages:?}");
    let address: SocketAddr = listening["fields"]["address"].as_str().unwrap().parse().unwrap();
    soon(TcpStream::connect(address)).await.unwrap();
    assert_eq!(get(starting.admin, "/ready").await.status, 200);
    starting.terminates().await;
}

#[tokio::test]
async fn a_server_gives_up_after_the_storage_wait() {
    let storage = no_redis().await;
    for (wait, least) in [("0", Duration::ZERO), ("700ms", Duration::from_millis(700))] {
        let began = Instant::now();
        let (code, stderr) = fails(serve(&["--storage", &storage, "--storage-wait", wait])).await;
        assert_eq!(code, Some(5), "{stderr}");
        assert!(began.elapsed() >= least, "{:?}", began.elapsed());
        let last = stderr.lines().last().unwrap();
        assert!(last.starts_with("sessiond: redis://") && last.contains("cannot be opened"), "{stderr}");
    }
}

#[tokio::test]
async fn permanent_storage_errors_end_the_start_immediately() {
    let folder = tempfile::tempdir().unwrap();
    let foreign = folder.path().join("letter");
    std::fs::write(&foreign, "Dear operator").unwrap();
    let storage = format!("file:{}", foreign.display());
    let (code, stderr) = fails(serve(&["--storage", &storage, "--storage-wait", "forever"])).await;
    assert_eq!(code, Some(5), "{stderr}");
    assert!(stderr.contains("is not a registry of sessiond"), "{stderr}");
}

#[tokio::test]
async fn with_a_storage_wait_a_server_waits_for_a_file_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let storage = format!("file:{}", folder.path().join("registry").display());
    let first = Program::start(&["--storage", &storage]).await;
    let mut second = Starting::with(&["--storage", &storage, "--storage-wait", "1m"]).await;
    second.logs(WAITS).await;
    first.crash().await;
    second.logs("listening").await;
    second.terminates().await;
}

#[tokio::test]
async fn a_signal_ends_a_server_that_is_still_reading_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry");
    let options = StorageOptions::DEFAULT.retain_events(1 << 20).max_sessions(1 << 30).max_leases(1);
    let registry = FileStorage::open(&path, options).await.unwrap();
    for part in 0..40 {
        let sessions: Vec<_> = (0..10_000).map(|id| SessionKey::new(part, id)).collect();
        registry.create(&sessions, None).await.unwrap();
    }
    drop(registry);
    let storage = format!("file:{}", path.display());
    for signals in [1, 2] {
        let mut starting = Starting::with(&["--storage", &storage]).await;
        starting.terminates_after(signals).await;
        // The server had not finished reading the file.
        while let Some(line) = starting.lines.next_line().await.unwrap() {
            assert!(!line.contains("\"listening\""), "the signal came too late: {line}");
        }
    }
}
