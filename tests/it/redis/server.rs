//! A redis-server of a test's own, on a free port, with a folder of its own.

use std::{
    io::ErrorKind,
    net::TcpListener,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use redis::{Client, Cmd, FromRedisValue};
use tempfile::TempDir;

use crate::installed::is_missing;

/// How long it may take to start, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether there is a redis-server to test with.
pub(crate) fn is_installed() -> bool {
    let found = Command::new("redis-server").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match &found {
        Ok(status) => assert!(status.success(), "redis-server --version fails"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "redis-server cannot be run"),
    }
    !is_missing("redis", found.is_ok())
}

/// A running redis-server; dropping it kills it and deletes its folder.
pub(crate) struct RedisServer {
    child: Option<Child>,
    pub(crate) port: u16,
    folder: TempDir,
    args: Vec<String>,
}

impl RedisServer {
    /// One that keeps nothing on disk, with further arguments of redis-server.
    pub(crate) fn start(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut server = Self { child: None, port: 0, folder, args };
        let deadline = Instant::now() + PATIENCE;
        // Somebody else may take the port before redis-server does.
        while server.child.is_none() {
            assert!(Instant::now() < deadline, "redis-server does not start");
            server.port = free_port();
            server.try_start();
        }
        server
    }

    /// Starts it again, on the same port, with what is in its folder.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let deadline = Instant::now() + PATIENCE;
        while self.child.is_none() {
            assert!(Instant::now() < deadline, "redis-server does not start again");
            self.try_start();
        }
    }

    fn try_start(&mut self) {
        let mut command = Command::new("redis-server");
        command.current_dir(self.folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        let mut child = command.args(&self.args).spawn().expect("redis-server is installed");
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if child.try_wait().unwrap().is_some() {
                return;
            }
            if self.ask::<String>(&redis::cmd("PING")).is_ok_and(|answer| answer == "PONG") {
                self.child = Some(child);
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = child.kill();
        let _ = child.wait();
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends a signal, as `kill` names it: STOP, CONT.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().expect("kill is installed").success());
    }

    /// The URL of a registry in it.
    pub(crate) fn url(&self, parameters: &str) -> String {
        format!("redis://127.0.0.1:{}/?{parameters}", self.port)
    }

    /// Has it do something, over a connection of its own.
    pub(crate) fn ask<T: FromRedisValue>(&self, command: &Cmd) -> redis::RedisResult<T> {
        let client = Client::open(("127.0.0.1", self.port))?;
        let mut connection = client.get_connection_with_timeout(PATIENCE)?;
        command.query(&mut connection)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn free_port() -> u16 {
    // A node of a cluster also listens ten thousand ports higher.
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if port < 55_000 {
            return port;
        }
    }
}
