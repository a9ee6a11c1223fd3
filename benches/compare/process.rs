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
        cpu(format!("/proc/{}/stat", self.child.id()), 2)
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

/// What some work took.
#[derive(Clone, Copy)]
pub(crate) struct Taken {
    /// Processor time of the server.
    pub(crate) server: Duration,
    /// Processor time of the loader.
    loader: Duration,
    pub(crate) wall: Duration,
}

impl Taken {
    /// Has `server` worked for `work`, which this process does, or a child that it waits for.
    pub(crate) async fn by(server: &Server, work: impl Future<Output = ()>) -> Self {
        let (server_before, loader_before, started) = (server.cpu(), loader_cpu(), Instant::now());
        work.await;
        let (server, loader) = (server.cpu() - server_before, loader_cpu() - loader_before);
        Self { server, loader, wall: started.elapsed() }
    }

    /// Processor time of the server for each of so many things that it did, in microseconds.
    pub(crate) fn us_each(&self, count: u64) -> f64 {
        self.server.as_secs_f64() * 1e6 / count as f64
    }

    /// Why the figures are no measure of the server, if they are none: the loader worked more than it, and it was not busy
    /// all the time.
    pub(crate) fn rejection(&self) -> Option<String> {
        let share = |cpu: Duration| cpu.as_secs_f64() / self.wall.as_secs_f64() * 100.0;
        let is_loader_the_bottleneck = self.loader > self.server && share(self.server) < 90.0;
        is_loader_the_bottleneck.then(|| {
            format!("rejected: {:.0}% of a core here, {:.0}% in the loader", share(self.server), share(self.loader))
        })
    }
}

/// Of several runs of several things, that of each in which the server took the least.
#[derive(Default)]
pub(crate) struct Least(pub(crate) Vec<Taken>);

impl Least {
    /// Adds a run of thing number `n`; those before it were added before it.
    pub(crate) fn add(&mut self, n: usize, taken: Taken) {
        match self.0.get_mut(n) {
            Some(least) if taken.server < least.server => *least = taken,
            Some(_) => {}
            None => self.0.push(taken),
        }
    }
}

/// The processor time that this process has taken, and the children that it has waited for.
fn loader_cpu() -> Duration {
    cpu("/proc/self/stat", 4)
}

/// Sums the first so many of user and system time of a process, and of its children that have ended.
fn cpu(path: impl AsRef<Path>, times: usize) -> Duration {
    let stat = fs::read_to_string(path).unwrap();
    // The name, in parentheses, may have spaces; these are the 14th to the 17th fields.
    let fields = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(times);
    // USER_HZ is 100 on every Linux that matters.
    Duration::from_millis(fields.map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum())
}
