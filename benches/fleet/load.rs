//! The load on a fleet: `sessiond bench` at a fixed rate, one process for each replica.

use std::{
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

/// What is sent to the replicas.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Load {
    pub(crate) calls: Calls,
    /// Calls per second to all replicas together, unless they are as many as are answered.
    pub(crate) rate: u32,
    /// Whether the first replica takes all calls, so that the others only follow.
    pub(crate) only_first: bool,
    /// Observers of each replica.
    pub(crate) observers: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Calls {
    None,
    Has,
    /// Creates and destroys of one session.
    Changes,
    /// As many of them as are answered, with 32 in flight at each replica.
    Most,
    /// Creates and destroys of [`BATCH`] sessions.
    Batches,
}

pub(crate) const BATCH: u32 = 1000;
/// The sessions at each replica, half of which exist at a time. Enough for calls that always change something.
const SESSIONS: u32 = 512;

impl Load {
    pub(crate) const IDLE: Self = Self { calls: Calls::None, rate: 0, only_first: false, observers: 0 };

    /// Returns the share of the calls that replica `n` of `replicas` takes.
    pub(crate) fn share_of(&self, n: usize, replicas: usize) -> f64 {
        match self.only_first {
            true if n == 0 => 1.0,
            true => 0.0,
            false => 1.0 / replicas as f64,
        }
    }
}

/// The processes that make the load.
pub(crate) struct Loaders {
    processes: Vec<Child>,
    /// How many sessions they create before the load begins.
    pub(crate) first_sessions: f64,
}

impl Loaders {
    /// Starts to load the replicas for so many seconds.
    pub(crate) fn start(load: Load, replicas: &[SocketAddr], seconds: f64) -> Self {
        let (mut processes, mut first_sessions) = (Vec::new(), 0.0);
        for (n, address) in replicas.iter().enumerate() {
            let share = load.share_of(n, replicas.len());
            if load.calls == Calls::None || share == 0.0 && load.observers == 0 {
                continue;
            }
            let (calls, shape) = match load.calls {
                // Only the observers matter here.
                _ if share == 0.0 => ("has=1", [1, 1, 1, 2]),
                Calls::None | Calls::Has => ("has=1", [2, 16, 1, SESSIONS]),
                Calls::Changes | Calls::Most => ("create=1,destroy=1", [2, 16, 1, SESSIONS]),
                Calls::Batches => ("create=1,destroy=1", [1, 4, BATCH, 8 * BATCH]),
            };
            let mut command = Command::new(env!("CARGO_BIN_EXE_sessiond"));
            command.args(["bench", "--format", "json", "--threads", "1", "--warmup", "0s", "--calls", calls]);
            for (flag, value) in ["--connections", "--in-flight", "--batch", "--sessions"].into_iter().zip(shape) {
                command.args([flag, &value.to_string()]);
            }
            command.args(["--addr", &format!("http://{address}")]);
            if load.calls != Calls::Most {
                let rate = (f64::from(load.rate) * share).round().max(1.0);
                command.args(["--rate", &rate.to_string()]);
            }
            command.args(["--observers", &load.observers.to_string(), "--observers-per-connection", "10"]);
            command.args(["--duration", &format!("{}ms", (seconds * 1e3).round())]);
            first_sessions += f64::from(shape[3] / 2);
            processes.push(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        }
        Self { processes, first_sessions }
    }

    /// Waits for the end of the load, and checks that no call failed and that every observer received every event.
    pub(crate) fn finish(self) {
        for loader in self.processes {
            let output = loader.wait_with_output().unwrap();
            let report = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "a load failed: {report}");
        }
    }
}
