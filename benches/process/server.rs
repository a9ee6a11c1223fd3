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

    /// Returns how long and how often the running threads of the process have run.
    pub(crate) fn ran(&self) -> Ran {
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        threads.map(|thread| Ran::of(&thread.unwrap().path())).fold(Ran::default(), |all, thread| Ran {
            seconds: all.seconds + thread.seconds,
            wakeups: all.wakeups + thread.wakeups,
        })
    }

    /// Returns how long and how often the main thread of the process has run.
    pub(crate) fn main_ran(&self) -> Ran {
        let process = self.child.id();
        Ran::of(format!("/proc/{process}/task/{process}").as_ref())
    }

    /// Returns the resident memory of the process, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        super::resident(self.child.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts sessiond as it is shipped, by default on the memory storage.
pub(crate) fn sessiond(flags: &[&str]) -> Server {
    let port = free_port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessiond"));
    command.args(["--listen", &format!("127.0.0.1:{port}"), "--admin-listen", "127.0.0.1:0", "--log", "off"]);
    Server::start(command.args(flags), port).unwrap()
}

/// Returns the sum of the first `times` of these figures: user and system time of a process, then of its children that
/// have ended.
pub(crate) fn cpu(path: impl AsRef<Path>, times: usize) -> Duration {
    let stat = fs::read_to_string(path).unwrap();
    // The process name, in parentheses, may contain spaces. These are fields 14 to 17.
    let fields = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(times);
    // USER_HZ is 100 on every Linux that matters.
    Duration::from_millis(fields.map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum())
}

/// How long threads have been on a core, more exactly than in ticks, and how often they had gone to sleep before.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ran {
    pub(crate) seconds: f64,
    pub(crate) wakeups: f64,
}

impl Ran {
    /// Reads what a thread has done, nothing if it has ended meanwhile.
    fn of(thread: &Path) -> Self {
        let read = |file: &str| fs::read_to_string(thread.join(file)).unwrap_or_default();
        let number = |text: Option<&str>| text.and_then(|text| text.trim().parse().ok()).unwrap_or(0.0);
        let (schedstat, status) = (read("schedstat"), read("status"));
        let nanos: f64 = number(schedstat.split(' ').next());
        let wakeups = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        Self { seconds: nanos / 1e9, wakeups: number(wakeups) }
    }
}
