//! Starts, measures and stops server processes.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A server process, killed on drop.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

/// Returns a port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    /// Starts `command` and waits until it listens on `port`. Returns `None` if the program is not installed.
    pub(crate) fn start(command: &mut Command, port: u16) -> Option<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        let server = Self { child, address };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "{command:?} does not listen on its port");
            thread::sleep(Duration::from_millis(20));
        }
        Some(server)
    }

    /// Returns the processor time that the process has taken, user and system.
    pub(crate) fn cpu(&self) -> Duration {
        cpu(format!("/proc/{}/stat", self.child.id()), 2)
    }

    /// Returns the same without the system's part.
    pub(crate) fn user_cpu(&self) -> Duration {
        cpu(format!("/proc/{}/stat", self.child.id()), 1)
    }

    /// Returns the resident memory of the process, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        super::used::resident(self.child.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The time that some work took.
#[derive(Clone, Copy)]
pub(crate) struct Taken {
    /// The processor time of the server.
    pub(crate) server: Duration,
    /// The processor time of the load generator.
    loader: Duration,
    pub(crate) wall: Duration,
}

impl Taken {
    /// Runs `work`, and measures `server` and the load generator meanwhile. The load generator is this process and its
    /// children.
    pub(crate) async fn by(server: &Server, work: impl Future<Output = ()>) -> Self {
        let (server_before, loader_before, started) = (server.cpu(), loader_cpu(), Instant::now());
        work.await;
        let (server, loader) = (server.cpu() - server_before, loader_cpu() - loader_before);
        Self { server, loader, wall: started.elapsed() }
    }

    /// Returns the server's processor time for each of `count` operations, in microseconds.
    pub(crate) fn us_each(&self, count: u64) -> f64 {
        self.server.as_secs_f64() * 1e6 / count as f64
    }

    /// Returns why the figures do not measure the server: the load generator took more processor time than the server,
    /// which was not always busy. `None` if the figures are valid.
    pub(crate) fn rejection(&self) -> Option<String> {
        let share = |cpu: Duration| cpu.as_secs_f64() / self.wall.as_secs_f64() * 100.0;
        let is_loader_the_bottleneck = self.loader > self.server && share(self.server) < 90.0;
        is_loader_the_bottleneck.then(|| {
            format!(
                "rejected: {:.0}% of a core in the server, {:.0}% in the load generator",
                share(self.server),
                share(self.loader)
            )
        })
    }
}

/// For each of several measurements, the run in which the server took the least processor time.
#[derive(Default)]
pub(crate) struct Least(pub(crate) Vec<Taken>);

impl Least {
    /// Adds a run of measurement `n`. The first runs must be added in the order of their numbers.
    pub(crate) fn add(&mut self, n: usize, taken: Taken) {
        match self.0.get_mut(n) {
            Some(least) if taken.server < least.server => *least = taken,
            Some(_) => {}
            None => self.0.push(taken),
        }
    }
}

/// Returns the processor time of this process, and of its children that have ended.
fn loader_cpu() -> Duration {
    cpu("/proc/self/stat", 4)
}

/// Returns the sum of the first `times` of these figures: user and system time of a process, then of its children that
/// have ended.
fn cpu(path: impl AsRef<Path>, times: usize) -> Duration {
    let stat = fs::read_to_string(path).unwrap();
    // The process name, in parentheses, may contain spaces. These are fields 14 to 17.
    let fields = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(times);
    // USER_HZ is 100 on every Linux that matters.
    Duration::from_millis(fields.map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum())
}
