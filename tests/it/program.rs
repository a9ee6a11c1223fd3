//! The program as a process of its own, on free ports.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Stdio,
    sync::{Arc, Mutex},
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStderr, Command},
    task::JoinHandle,
};
use tonic::transport::Endpoint;

use crate::{fake::soon, server::Sessions};

/// `sessiond serve` with these arguments, with nothing of this process's environment.
pub(crate) fn serve(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessiond"));
    command.env_clear().arg("serve").args(args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Where to listen so that nobody else takes the address while the server is away: a port of 127.0.0.1 may become a
/// client's end of a connection meanwhile.
pub(crate) fn own_address() -> String {
    let [a, b, c] = [fastrand::u8(1..255), fastrand::u8(..), fastrand::u8(1..255)];
    format!("{}:0", Ipv4Addr::new(127, a, b, c))
}

/// A server process that listens; dropping it kills it.
pub(crate) struct Program {
    child: Child,
    pub(crate) addr: SocketAddr,
    pub(crate) admin: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    reading: Option<JoinHandle<()>>,
}

impl Program {
    pub(crate) async fn start(args: &[&str]) -> Self {
        Self::start_on("127.0.0.1:0", args).await
    }

    /// One that has no more of something than `ulimit` gives it, as in `-n 64`.
    pub(crate) async fn start_limited(ulimit: &str, args: &[&str]) -> Self {
        Self::start_within(&["sh", "-c", &format!("ulimit {ulimit} && exec \"$0\" \"$@\"")], args).await
    }

    /// One that another program becomes, which is given its command line.
    pub(crate) async fn start_within(within: &[&str], args: &[&str]) -> Self {
        let ports = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--log-format", "json"];
        let whole = serve(&[&ports, args].concat());
        let mut command = Command::new(within[0]);
        command.env_clear().args(&within[1..]);
        command.arg(whole.as_std().get_program()).args(whole.as_std().get_args());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        Self::launch(command).await
    }

    pub(crate) async fn start_on(listen: &str, args: &[&str]) -> Self {
        let ports = ["--listen", listen, "--admin-listen", "127.0.0.1:0", "--log-format", "json"];
        Self::launch(serve(&[&ports, args].concat())).await
    }

    /// One with these variables in its environment.
    pub(crate) async fn start_in(environment: &[(&str, &str)], args: &[&str]) -> Self {
        let ports = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--log-format", "json"];
        let mut command = serve(&[&ports, args].concat());
        command.envs(environment.iter().copied());
        Self::launch(command).await
    }

    /// One that may have to wait for its storage before it listens.
    pub(crate) async fn start_waiting(args: &[&str]) -> Waiting {
        let ports = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--log-format", "json"];
        Waiting::launch(serve(&[&ports, args].concat())).await
    }

    async fn launch(command: Command) -> Self {
        Waiting::launch(command).await.listens().await
    }

    /// A client with a connection of its own, made when it is first used.
    pub(crate) fn sessions(&self) -> Sessions {
        Sessions::new(Endpoint::from_shared(format!("http://{}", self.addr)).unwrap().connect_lazy())
    }

    /// Kills it, and waits until it is gone.
    pub(crate) async fn crash(mut self) {
        soon(self.child.kill()).await.unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    pub(crate) async fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        let killed = soon(Command::new("kill").args(["-s", signal, &pid]).status()).await.expect("kill is installed");
        assert!(killed.success());
    }

    /// Waits until it has ended.
    pub(crate) async fn exit_code(&mut self) -> Option<i32> {
        let status = soon(self.child.wait()).await.unwrap();
        // All that it logged has been read then.
        if let Some(reading) = self.reading.take() {
            soon(reading).await.unwrap();
        }
        status.code()
    }

    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let page = get(self.admin, "/metrics").await.body;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name}:\n{page}")).parse().unwrap()
    }

    /// Waits until a metric is `value`.
    pub(crate) async fn metric_comes_to(&self, name: &str, value: u64) {
        let mut last = 0;
        let polls = async {
            loop {
                last = self.metric(name).await;
                if last == value {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(std::time::Duration::from_secs(30), polls).await.is_err() {
            panic!("{name} is {last} and does not come to {value}");
        }
    }

    /// Waits until the drain has begun.
    pub(crate) async fn draining(&self) {
        soon(async {
            while get(self.admin, "/ready").await.status != 503 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Waits until it has logged something.
    pub(crate) async fn logs(&self, something: &str) {
        crate::server::eventually(something, || self.log().contains(something)).await;
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }
}

/// A server process that answers at its admin port, and may not listen yet; dropping it kills it.
pub(crate) struct Waiting {
    child: Child,
    pub(crate) admin: SocketAddr,
    /// What it has logged.
    log: Vec<String>,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Waiting {
    async fn launch(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the program starts");
        let lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut waiting = Self { child, admin: nowhere, log: Vec::new(), lines };
        waiting.admin = waiting.address("admin_address", |_| true).await;
        waiting
    }

    /// The address in a field of the first line that has one and is meant.
    async fn address(&mut self, name: &str, is_meant: impl Fn(&Value) -> bool) -> SocketAddr {
        loop {
            for text in &self.log {
                let line: Value = serde_json::from_str(text).unwrap_or_else(|_| panic!("{text}"));
                if let Some(address) = line["fields"][name].as_str()
                    && is_meant(&line["fields"])
                {
                    return address.parse().unwrap();
                }
            }
            self.log.push(soon(self.lines.next_line()).await.unwrap().expect("it says that it listens"));
        }
    }

    /// Waits until it listens.
    pub(crate) async fn listens(mut self) -> Program {
        let addr = self.address("address", |fields| fields["message"] == "listening").await;
        let Self { child, admin, log, mut lines } = self;
        let log = Arc::new(Mutex::new(log));
        let reads = Arc::clone(&log);
        // Read to the end, so that the program never waits for us.
        let reading = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                reads.lock().unwrap().push(line);
            }
        });
        Program { child, addr, admin, log, reading: Some(reading) }
    }
}

/// What the admin port answered.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

pub(crate) async fn get(admin: SocketAddr, path: &str) -> Page {
    request(admin, "GET", path).await
}

pub(crate) async fn request(admin: SocketAddr, method: &str, path: &str) -> Page {
    let mut socket = soon(TcpStream::connect(admin)).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
    soon(socket.write_all(request.as_bytes())).await.unwrap();
    let mut text = String::new();
    soon(socket.read_to_string(&mut text)).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer of HTTP");
    let status = head.split(' ').nth(1).expect("a status").parse().unwrap();
    Page { status, head: head.to_lowercase(), body: body.to_owned() }
}
