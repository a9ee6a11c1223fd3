//! Servers as processes: started on a free port, waited for, measured, ended.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A server that runs until it is dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    /// Starts `command`, which listens on `port`. None when there is no such program.
    pub(crate) fn start(command: &mut Command, port: u16) -> Option<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        let server = Self { child, address };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "{command:?} does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Some(server)
    }

    /// The processor time that it has taken, user and system.
    pub(crate) fn cpu(&self) -> Duration {
        cpu(format!("/proc/{}/stat", self.child.id()))
    }

    /// The bytes of memory that it has resident.
    pub(crate) fn resident(&self) -> u64 {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processor time that this process has taken.
pub(crate) fn own_cpu() -> Duration {
    cpu("/proc/self/stat")
}

fn cpu(path: impl AsRef<Path>) -> Duration {
    let stat = fs::read_to_string(path).unwrap();
    // The name, in parentheses, may have spaces; user and system time are the 14th and 15th fields.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // USER_HZ is 100 on every Linux that matters.
    Duration::from_millis(ticks * 10)
}
