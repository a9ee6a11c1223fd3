//! A client that retries calls as the README describes under "When a call fails".

use std::time::Duration;

use sessiond::client::{Client, ClientError};
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

/// A call fails if it has not succeeded within this time.
const DEADLINE: Duration = Duration::from_secs(10);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Calls one replica until a call to it fails, then the next.
pub(crate) struct Retrying {
    replicas: Vec<Client>,
    current: usize,
    /// Counts answered calls and failed attempts.
    pub(crate) tally: Tally,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) calls: u64,
    pub(crate) failed_tries: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.failed_tries += other.failed_tries;
    }
}

/// An answer, and whether the first attempt got it. The answer to a retry may reflect what an earlier attempt did.
#[derive(Debug)]
pub(crate) struct Answered<T> {
    pub(crate) answer: T,
    pub(crate) at_once: bool,
}

impl Retrying {
    /// Starts with the replica of this number, so that callers can start with different ones.
    pub(crate) fn new(replicas: Vec<Client>, first: usize) -> Self {
        let current = first % replicas.len();
        Self { replicas, current, tally: Tally::default() }
    }

    /// Makes a call, with retries. Returns an error only if the retry policy gives up.
    pub(crate) async fn call<T>(
        &mut self,
        call: impl AsyncFn(Client) -> Result<T, ClientError>,
    ) -> Result<Answered<T>, ClientError> {
        let deadline = Instant::now() + DEADLINE;
        let mut ceiling = FIRST_WAIT;
        let mut at_once = true;
        loop {
            let error = match call(self.replicas[self.current].clone()).await {
                Ok(answer) => {
                    self.tally.calls += 1;
                    return Ok(Answered { answer, at_once });
                }
                Err(error) => error,
            };
            let wait = ceiling.mul_f64(fastrand::f64()).max(error.retry_after().unwrap_or_default());
            if !may_pass(&error) || Instant::now() + wait > deadline {
                return Err(error);
            }
            self.tally.failed_tries += 1;
            at_once = false;
            self.current = (self.current + 1) % self.replicas.len();
            sleep(wait).await;
            ceiling = (ceiling * 2).min(LONGEST_WAIT);
        }
    }
}

/// Whether a retry may succeed: the server is unreachable or UNAVAILABLE, or a limit is reached for now.
fn may_pass(error: &ClientError) -> bool {
    match error.status().map(Status::code) {
        Some(Code::ResourceExhausted) => error.retry_after().is_some(),
        code => code == Some(Code::Unavailable) || matches!(error, ClientError::Unreachable(_)),
    }
}
