//! A redis-server for one test, on a free port and with its own folder.

use std::{
    env, fs,
    io::ErrorKind,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use redis::{Client, Cmd, FromRedisValue};
use tempfile::TempDir;

use crate::installed::is_missing;

/// How long the server may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server program that tests run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerKind {
    /// The installed redis-server.
    Redis,
    /// Redis 6.2, the oldest supported version: the program that `SESSIOND_TEST_REDIS62` names.
    Redis62,
    /// Valkey: the program that `SESSIOND_TEST_VALKEY` names.
    Valkey,
}

impl ServerKind {
    fn program(self) -> Option<PathBuf> {
        match self {
            Self::Redis => Some("redis-server".into()),
            Self::Redis62 => env::var_os("SESSIOND_TEST_REDIS62").map(PathBuf::from),
            Self::Valkey => env::var_os("SESSIOND_TEST_VALKEY").map(PathBuf::from),
        }
    }

    /// Whether this program is available.
    pub(crate) fn is_installed(self) -> bool {
        let version = |program: PathBuf| Command::new(program).arg("--version").stdout(Stdio::null()).status();
        let found = match self.program().map(version) {
            None => false,
            Some(Ok(status)) => {
                assert!(status.success(), "{self:?} --version fails");
                true
            }
            Some(Err(error)) => {
                assert!(self == Self::Redis && error.kind() == ErrorKind::NotFound, "{self:?} cannot be run: {error}");
                false
            }
        };
        !is_missing(self.name(), found)
    }

    /// The name that `SESSIOND_TEST_REQUIRE` uses for it.
    fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Redis62 => "redis62",
            Self::Valkey => "valkey",
        }
    }

    /// Starts a server that keeps nothing on disk. Takes extra arguments for redis-server.
    pub(crate) fn start(self, args: &[&str]) -> RedisServer {
        RedisServer::start_kind(self, args)
    }

    /// Returns the arguments that allow the DEBUG command.
    pub(crate) fn with_debug(self) -> &'static [&'static str] {
        match self {
            // Redis 6.2 always allows it.
            Self::Redis62 => &[],
            Self::Redis | Self::Valkey => &["--enable-debug-command", "yes"],
        }
    }
}

/// Expands `async fn name(kind: ServerKind)` into a test for each kind of server: `name::redis`, `name::redis62` and
/// `name::valkey`.
macro_rules! on_each_server {
    ($([$($test:tt)*] $name:ident;)+) => {
        $(mod $name {
            use crate::redis::server::{ServerKind, on_each_server};

            on_each_server!(@one [$($test)*] $name, redis, Redis);
            on_each_server!(@one [$($test)*] $name, redis62, Redis62);
            on_each_server!(@one [$($test)*] $name, valkey, Valkey);
        })+
    };
    (@one [$($test:tt)*] $name:ident, $server:ident, $kind:ident) => {
        $($test)*
        async fn $server() {
            if ServerKind::$kind.is_installed() {
                super::$name(ServerKind::$kind).await;
            }
        }
    };
}
pub(crate) use on_each_server;

/// Whether a redis-server is installed.
pub(crate) fn is_installed() -> bool {
    ServerKind::Redis.is_installed()
}

/// A running redis-server. Dropping it kills the server and deletes its folder.
pub(crate) struct RedisServer {
    kind: ServerKind,
    child: Option<Child>,
    pub(crate) port: u16,
    folder: TempDir,
    /// The arguments before all others.
    mode: &'static [&'static str],
    args: Vec<String>,
    environment: Vec<(String, String)>,
}

impl RedisServer {
    /// Starts the installed redis-server, which keeps nothing on disk. Takes extra arguments for redis-server.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_kind(ServerKind::Redis, args)
    }

    fn start_kind(kind: ServerKind, args: &[&str]) -> Self {
        Self::start_in(kind, &[], args)
    }

    /// Starts a server with these environment variables.
    pub(crate) fn start_in(kind: ServerKind, environment: &[(String, String)], args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut server =
            Self { kind, child: None, port: 0, folder, mode: &[], args, environment: environment.to_vec() };
        server.start_anywhere();
        server
    }

    /// Starts a Sentinel with this configuration.
    pub(crate) fn start_sentinel(kind: ServerKind, configuration: &str, args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("sentinel.conf"), configuration).unwrap();
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mode = &["sentinel.conf", "--sentinel"];
        let mut server = Self { kind, child: None, port: 0, folder, mode, args, environment: Vec::new() };
        server.start_anywhere();
        server
    }

    fn start_anywhere(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        // Another process may take the port before redis-server does.
        while self.child.is_none() {
            assert!(Instant::now() < deadline, "redis-server did not start");
            self.port = free_port();
            self.try_start();
        }
    }

    /// Restarts the server on the same port, with the files in its folder.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let deadline = Instant::now() + PATIENCE;
        while self.child.is_none() {
            assert!(Instant::now() < deadline, "redis-server did not restart");
            self.try_start();
        }
    }

    /// Restarts the server with extra arguments. Returns as soon as it answers that it is loading its dump.
    pub(crate) fn restart_loading(&mut self, args: &[&str]) {
        self.kill();
        self.child = Some(self.command().args(args).spawn().expect("the program is installed"));
        let deadline = Instant::now() + PATIENCE;
        while !self.is_loading() {
            assert!(Instant::now() < deadline, "redis-server did not start to load its dump");
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn is_loading(&self) -> bool {
        self.ask::<String>(&redis::cmd("PING")).is_err_and(|error| error.code() == Some("LOADING"))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.kind.program().expect("the program is installed"));
        command.current_dir(self.folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.args(self.mode);
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.args(&self.args);
        command
    }

    fn try_start(&mut self) {
        let mut child = self.command().spawn().expect("the program is installed");
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if child.try_wait().unwrap().is_some() {
                return;
            }
            if self.is_serving() {
                self.child = Some(child);
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Whether the server answers, even if with an error that has nothing to do with starting.
    fn is_serving(&self) -> bool {
        match self.ask::<String>(&redis::cmd("PING")) {
            Ok(_) => true,
            Err(error) => matches!(error.code(), Some("NOAUTH" | "MISCONF")),
        }
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends a signal by its name for `kill`: STOP, CONT.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().expect("the server is running").id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().expect("kill is installed").success());
    }

    /// Sets a configuration parameter.
    pub(crate) fn set(&self, parameter: &str, value: &str) {
        let () = self.ask(redis::cmd("CONFIG").arg("SET").arg(parameter).arg(value)).unwrap();
    }

    /// Returns the folder with the server's files.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns a field of INFO, such as `used_memory`.
    pub(crate) fn info(&self, section: &str, field: &str) -> Option<String> {
        let info: String = self.ask(redis::cmd("INFO").arg(section)).unwrap();
        info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).map(str::to_owned)
    }

    /// Returns how many replicas receive the changes of this master. 0 if it does not answer.
    pub(crate) fn followers(&self) -> usize {
        let replication: String = self.ask(redis::cmd("INFO").arg("replication")).unwrap_or_default();
        replication.matches("state=online").count()
    }

    /// Returns the URL of a registry in this server.
    pub(crate) fn url(&self, parameters: &str) -> String {
        format!("redis://127.0.0.1:{}/?{parameters}", self.port)
    }

    /// Runs a command over a new connection.
    pub(crate) fn ask<T: FromRedisValue>(&self, command: &Cmd) -> redis::RedisResult<T> {
        let client = Client::open(("127.0.0.1", self.port))?;
        loop {
            let result =
                client.get_connection_with_timeout(PATIENCE).and_then(|mut connection| command.query(&mut connection));
            match result {
                // A signal, such as that of a child's end, interrupts reads that have a timeout.
                Err(error) if error.to_string().contains("Interrupted system call") => {}
                result => return result,
            }
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn free_port() -> u16 {
    // The bus port of a cluster node is ten thousand higher.
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if port < 55_000 {
            return port;
        }
    }
}
