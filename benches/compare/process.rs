//! The processor time that work at a server takes.

use std::time::{Duration, Instant};

use super::used::server::cpu;
pub(crate) use super::used::server::{Server, free_port};

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
