//! Runs the program as a separate process, on free ports.

use std::{
    fmt::Debug,
    net::{Ipv4Addr, SocketAddr},
    process::{Output, Stdio},
    str::FromStr,
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

/// The program itself.
pub(crate) const SESSIOND: &str = env!("CARGO_BIN_EXE_sessiond");

/// Returns a command that runs the program with an empty environment.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(SESSIOND);
    command.env_clear().args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Returns a command that runs `sessiond serve`, on free ports unless the arguments say otherwise.
pub(crate) fn serve(args: &[&str]) -> Command {
    let mut command = command(&[&["serve"], args].concat());
    command.env("SESSIOND_LISTEN", "127.0.0.1:0").env("SESSIOND_ADMIN_LISTEN", "127.0.0.1:0").stdout(Stdio::null());
    command
}

/// What a process that has ended returned and printed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("the program prints UTF-8");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// Runs a command to its end.
pub(crate) async fn run(mut command: Command) -> Ended {
    soon(command.output()).await.expect("the program starts").into()
}

/// Waits until a process has ended.
pub(crate) async fn end(child: Child) -> Ended {
    soon(child.wait_with_output()).await.expect("the program ends").into()
}

/// Runs a server that does not start. Returns its exit code and stderr.
pub(crate) async fn fails(mut serve: Command) -> (Option<i32>, String) {
    serve.stdout(Stdio::piped());
    let Ended { code, stdout, stderr } = run(serve).await;
    assert_eq!(stdout, "", "{stderr}");
    (code, stderr)
}

pub(crate) async fn signal(child: &Child, signal: &str) {
    let pid = child.id().expect("the program is running").to_string();
    let killed = soon(Command::new("kill").args(["-s", signal, &pid]).status()).await.expect("kill is installed");
    assert!(killed.success());
}

/// Returns a random loopback address to listen on. Nothing else takes a port of it while the server is down, whereas a
/// port of 127.0.0.1 may become the local port of some client's connection.
pub(crate) fn own_address() -> String {
    let [a, b, c] = [fastrand::u8(1..255), fastrand::u8(..), fastrand::u8(1..255)];
    format!("{}:0", Ipv4Addr::new(127, a, b, c))
}

/// Returns a command for a server whose log can be parsed.
fn logged(args: &[&str]) -> Command {
    serve(&[&["--log-format", "json"], args].concat())
}

/// A server process that is listening. Dropping it kills the process.
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

    /// Starts a server under a resource limit, given as arguments of `ulimit`: for example `-n 64`.
    pub(crate) async fn start_limited(ulimit: &str, args: &[&str]) -> Self {
        Self::start_within(&["sh", "-c", &format!("ulimit {ulimit} && exec \"$0\" \"$@\"")], args).await
    }

    /// Starts a server through the wrapper command `within`, which receives the server's command line and must exec it.
    pub(crate) async fn start_within(within: &[&str], args: &[&str]) -> Self {
        let server = logged(args);
        let mut command = Command::new(within[0]);
        command.env_clear().envs(server.as_std().get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.args(&within[1..]).arg(server.as_std().get_program()).args(server.as_std().get_args());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        Self::launch(command).await
    }

    pub(crate) async fn start_on(listen: &str, args: &[&str]) -> Self {
        Self::start_in(&[("SESSIOND_LISTEN", listen)], args).await
    }

    /// Starts a server with these environment variables.
    pub(crate) async fn start_in(environment: &[(&str, &str)], args: &[&str]) -> Self {
        let mut command = logged(args);
        command.envs(environment.iter().copied());
        Self::launch(command).await
    }

    /// Starts a server that may have to wait for its storage before it listens.
    pub(crate) async fn start_waiting(args: &[&str]) -> Waiting {
        Waiting::launch(logged(args)).await
    }

    async fn launch(command: Command) -> Self {
        Waiting::launch(command).await.listens().await
    }

    /// Returns a client with a new connection, which is opened on first use.
    pub(crate) fn sessions(&self) -> Sessions {
        Sessions::new(Endpoint::from_shared(format!("http://{}", self.addr)).unwrap().connect_lazy())
    }

    /// Kills the process and waits until it is gone.
    pub(crate) async fn crash(mut self) {
        soon(self.child.kill()).await.unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("the server is running")
    }

    pub(crate) async fn signal(&self, signal: &str) {
        self::signal(&self.child, signal).await;
    }

    /// Waits until the process has ended. Returns its exit code.
    pub(crate) async fn exit_code(&mut self) -> Option<i32> {
        let status = soon(self.child.wait()).await.unwrap();
        // Afterwards, `log` is complete.
        if let Some(reading) = self.reading.take() {
            soon(reading).await.unwrap();
        }
        status.code()
    }

    pub(crate) async fn metric(&self, name: &str) -> u64 {
        self.number(name).await
    }

    /// Returns how much processor time the process has taken, in seconds.
    pub(crate) async fn cpu(&self) -> f64 {
        self.number("process_cpu_seconds_total").await
    }

    async fn number<N: FromStr<Err: Debug>>(&self, name: &str) -> N {
        let page = get(self.admin, "/metrics").await.body;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name}:\n{page}")).parse().unwrap()
    }

    /// Waits until the metric has this value.
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
            panic!("{name} is still {last} after 30 s instead of {value}");
        }
    }

    /// Waits until the drain has started.
    pub(crate) async fn draining(&self) {
        soon(async {
            while get(self.admin, "/ready").await.status != 503 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Waits until the log contains this text.
    pub(crate) async fn logs(&self, something: &str) {
        crate::server::eventually(something, || self.log().contains(something)).await;
    }

    /// Returns the log so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }
}

/// A server process whose admin port is open, but which may not be listening yet. Dropping it kills the process.
pub(crate) struct Waiting {
    child: Child,
    pub(crate) admin: SocketAddr,
    /// The lines logged so far.
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

    /// Reads the log up to the first line that has the field `name` and for which `is_meant` is true. Returns the
    /// address in the field.
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
            self.log.push(soon(self.lines.next_line()).await.unwrap().expect("the server logs its addresses"));
        }
    }

    /// Waits until the server is listening.
    pub(crate) async fn listens(mut self) -> Program {
        let addr = self.address("address", |fields| fields["message"] == "listening").await;
        let Self { child, admin, log, mut lines } = self;
        let log = Arc::new(Mutex::new(log));
        let reads = Arc::clone(&log);
        // Read stderr to its end, so that the program never blocks on a full pipe.
        let reading = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                reads.lock().unwrap().push(line);
            }
        });
        Program { child, addr, admin, log, reading: Some(reading) }
    }
}

/// A response of the admin port.
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
    let (head, body) = text.split_once("\r\n\r\n").expect("the response is HTTP");
    let status = head.split(' ').nth(1).expect("the response has a status").parse().unwrap();
    Page { status, head: head.to_lowercase(), body: body.to_owned() }
}
