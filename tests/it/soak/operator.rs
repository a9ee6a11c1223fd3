//! Operates the server: scrapes its metrics, and kills it if its storage outlives it.

use std::{net::SocketAddr, time::Duration};

use tokio::time::{Instant, sleep_until};

use crate::program::{Program, get};

const BETWEEN_SCRAPES: Duration = Duration::from_millis(500);

pub(crate) struct Operator {
    program: Program,
    args: Vec<String>,
    may_kill: bool,
    pub(crate) kills: u64,
    pub(crate) scrapes: u64,
}

impl Operator {
    pub(crate) async fn start(listen: &str, args: &[&str], may_kill: bool) -> Self {
        let program = Program::start_on(listen, args).await;
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self { program, args, may_kill, kills: 0, scrapes: 0 }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.program.addr
    }

    pub(crate) fn program(&self) -> &Program {
        &self.program
    }

    pub(crate) async fn operate(&mut self, until: Instant) {
        let in_seconds =
            |from: u64, to: u64| Instant::now() + Duration::from_millis(fastrand::u64(from * 1000..to * 1000));
        // The first kill is early, so that it also happens in the shortest round.
        let mut kill_at = in_seconds(1, 5);
        while Instant::now() < until {
            let metrics = get(self.program.admin, "/metrics").await;
            assert_eq!(metrics.status, 200, "{}", metrics.body);
            self.scrapes += 1;
            if self.may_kill && Instant::now() >= kill_at {
                self.kill().await;
                kill_at = in_seconds(5, 20);
            }
            sleep_until(Instant::now() + BETWEEN_SCRAPES).await;
        }
    }

    async fn kill(&mut self) {
        self.is_well();
        self.program.signal("KILL").await;
        self.program.exit_code().await;
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        self.program = Program::start_on(&self.program.addr.to_string(), &args).await;
        self.kills += 1;
    }

    /// Asserts that the server logged no panic and no error.
    pub(crate) fn is_well(&self) {
        let log = self.program.log();
        assert!(!log.contains("panicked") && !log.contains("\"ERROR\""), "{log}");
    }
}
