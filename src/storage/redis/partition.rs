//! Sends calls to one partition of the registry.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, Value};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{
    channel::{Channel, Link, Newest},
    clock::Clock,
    fault::Fault,
    pace::Pace,
    retry::retry,
    script::Call,
    servers::{Servers, missing},
    url::{RedisUrl, Wait},
};

/// See the [module](self).
pub(super) struct Partition {
    pub(super) number: u32,
    /// The prefix of the partition's keys. The part in braces is the hash tag, which decides the node of a cluster.
    prefix: String,
    /// The connection for changes of sessions, and for calls that wait for Redis replicas.
    changing: Channel,
    /// The connection for all other calls.
    asking: Channel,
    pub(super) newest: Newest,
    pub(super) clock: Clock,
    pub(super) pace: Pace,
    /// The highest position that this process has read, or that an answer named as the end of the log. A server whose
    /// log ends before this position is not the right one.
    read_up_to: AtomicU64,
    timeout: Duration,
    wait: Option<Wait>,
}

/// The guarantees that a call needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mode {
    /// The call must not take effect after its failure was reported.
    is_fenced: bool,
    /// The effect must survive a failover of Redis, to the extent that `wait_replicas` provides.
    is_durable: bool,
}

/// For calls that change nothing, or whose effect may be late or lost.
pub(super) const ASK: Mode = Mode { is_fenced: false, is_durable: false };
/// For changes that must not take effect late.
pub(super) const FENCED: Mode = Mode { is_fenced: true, is_durable: false };
/// For changes that must not be lost.
pub(super) const DURABLE: Mode = Mode { is_fenced: false, is_durable: true };
/// For changes that must neither take effect late nor be lost.
pub(super) const CHANGE: Mode = Mode { is_fenced: true, is_durable: true };

impl Partition {
    pub(super) fn new(number: u32, url: &RedisUrl, servers: &Arc<Servers>) -> Self {
        let prefix = format!("{{{}:{number}}}:", url.registry);
        let channel = || Channel::new(Arc::clone(servers), format!("{prefix}meta"));
        Self {
            number,
            changing: channel(),
            asking: channel(),
            newest: Newest::default(),
            clock: Clock::default(),
            pace: Pace::default(),
            read_up_to: AtomicU64::new(0),
            timeout: url.timeout,
            wait: url.wait,
            prefix,
        }
    }

    /// Returns the full name of one of the partition's keys.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Returns the key of a bucket's hash.
    pub(super) fn bucket_key(&self, bucket: u32) -> String {
        format!("{}b{bucket}", self.prefix)
    }

    /// Returns the key of the set of buckets that have sessions under a lease.
    pub(super) fn lease_key(&self, lease: &[u8]) -> String {
        use std::fmt::Write;
        let mut key = self.key("l");
        lease.iter().for_each(|byte| {
            let _ = write!(key, "{byte:02x}");
        });
        key
    }

    /// Returns the time limit for an answer of Redis.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(super) fn read_up_to(&self) -> u64 {
        self.read_up_to.load(Ordering::Relaxed)
    }

    /// Records that the log reaches at least up to `position`.
    pub(super) fn note_read_up_to(&self, position: u64) {
        self.read_up_to.fetch_max(position, Ordering::Relaxed);
    }

    /// Records how far the log reaches, which may be less than before. For a log that lost changes or is a new one.
    pub(super) fn set_read_up_to(&self, position: u64) {
        self.read_up_to.store(position, Ordering::Relaxed);
    }

    /// Runs a script. `call` builds it, given the deadline after which the script must do nothing, by the partition's
    /// clock.
    ///
    /// A step that was certainly not executed is retried while there is time, over a new connection if necessary. The
    /// call returns within twice the timeout plus the time to wait for Redis replicas. A fenced call takes no effect
    /// after its failure was returned.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        mode: Mode,
        call: impl Fn(u64) -> Call + Send + Sync,
    ) -> Result<T, Fault> {
        let answer = self.run_any(mode, &call).await?;
        Ok(redis::from_redis_value(answer).map_err(RedisError::from)?)
    }

    /// Takes a `dyn Fn`, so that the retries and what they send are compiled once and not for each script.
    async fn run_any(&self, mode: Mode, call: &(dyn Fn(u64) -> Call + Send + Sync)) -> Result<Value, Fault> {
        let last_try = Instant::now() + self.timeout;
        retry(last_try, || self.try_run(mode, last_try + self.timeout, call)).await
    }

    async fn try_run(
        &self,
        mode: Mode,
        deadline: Instant,
        call: &(dyn Fn(u64) -> Call + Send + Sync),
    ) -> Result<Value, Fault> {
        let wait = self.wait.filter(|_| mode.is_durable);
        let channel = if wait.is_some() { &self.changing } else { &self.asking };
        let link = self.link(channel, deadline).await?;
        let expiry = Instant::now() + self.timeout;
        let call = call(self.clock.until(expiry));
        let outcome = self.send(channel, &link, &call, wait, expiry).await;
        if mode.is_fenced && matches!(outcome, Err(Fault::Unknown(_))) {
            sleep_until(expiry).await;
        }
        outcome
    }

    /// Sends a script that changes sessions, without retries. The script can take effect until `expiry`, and the caller
    /// must not report a failure before then.
    pub(super) async fn change(&self, link: &Link, call: &Call, expiry: Instant) -> Result<Value, Fault> {
        self.send(&self.changing, link, call, self.wait, expiry).await
    }

    pub(super) async fn changing_link(&self, deadline: Instant) -> Result<Link, Fault> {
        self.link(&self.changing, deadline).await
    }

    async fn link(&self, channel: &Channel, deadline: Instant) -> Result<Link, Fault> {
        let linking = timeout_at(deadline, channel.link(&self.newest)).await;
        let link = linking.unwrap_or_else(|_| Err(Fault::unsent("could not connect to Redis in time")))?;
        // A reading of another server's clock is of no use here.
        if self.clock.is_of(&link) {
            return Ok(link);
        }
        let reading = timeout_at(deadline, self.read_clock(&link)).await;
        match reading.unwrap_or_else(|_| Err(Fault::unsent("Redis did not return its clock in time"))) {
            Ok(()) => Ok(link),
            Err(fault) => {
                channel.discard(&link);
                Err(fault)
            }
        }
    }

    /// Reads the stored time, a lower bound of the partition's clock. If the time was stored long ago, the first script
    /// is rejected as late, and the rejection contains the current time.
    async fn read_clock(&self, link: &Link) -> Result<(), Fault> {
        let mut ask = redis::cmd("HGET");
        let answer = link.send(ask.arg(self.key("meta")).arg("time")).await.map_err(Fault::while_connecting)?;
        let time: Option<u64> = redis::from_redis_value(answer).map_err(RedisError::from)?;
        self.clock.read_from(time.unwrap_or(0), link);
        Ok(())
    }

    async fn send(
        &self,
        channel: &Channel,
        link: &Link,
        call: &Call,
        wait: Option<Wait>,
        expiry: Instant,
    ) -> Result<Value, Fault> {
        let sending = async {
            match self.send_once(link, call.by_hash(), wait).await {
                Err(error) if error.code() == Some("NOSCRIPT") => self.send_once(link, &call.by_code(), wait).await,
                answer => answer,
            }
        };
        let mut is_late = false;
        let answer_by = expiry + wait.map_or(Duration::ZERO, |wait| wait.timeout);
        let outcome = match timeout_at(answer_by, sending).await {
            Ok(Ok((answer, None))) => Ok(answer),
            Ok(Ok((answer, Some(got)))) => {
                let asked = wait.map_or(0, |wait| wait.replicas);
                if got < asked { Err(Fault::Unreplicated { got, asked }) } else { Ok(answer) }
            }
            Ok(Err(error)) => {
                is_late = self.clock.read_from_late(&error, link);
                Err(error.into())
            }
            Err(_) => Err(Fault::too_late()),
        };
        if !is_late && outcome.as_ref().is_err_and(Fault::needs_new_connection) {
            channel.discard(link);
        }
        outcome
    }

    /// Sends a command. With `wait`, also returns how many Redis replicas have the change: WAIT covers the commands
    /// that were sent before it over the same connection.
    async fn send_once(
        &self,
        link: &Link,
        command: &Cmd,
        wait: Option<Wait>,
    ) -> Result<(Value, Option<u32>), RedisError> {
        let Some(wait) = wait else { return Ok((link.send(command).await?, None)) };
        let mut both = Pipeline::with_capacity(2);
        both.add_command(command.clone());
        both.cmd("WAIT").arg(wait.replicas).arg(wait.timeout.as_millis() as u64);
        let mut answers = link.send_all(&both).await?.into_iter();
        let answer = answers.next().ok_or_else(missing)?.extract_error()?;
        let got = answers.next().ok_or_else(missing)?.extract_error()?;
        Ok((answer, Some(redis::from_redis_value(got)?)))
    }

    /// Sends a pipeline of reads. Returns its answers, or the first error among them.
    pub(super) async fn read(&self, commands: &Pipeline, deadline: Instant) -> Result<Vec<Value>, Fault> {
        let link = self.link(&self.asking, deadline).await?;
        let answers = match timeout_at(deadline, link.send_all(commands)).await {
            Ok(answers) => answers.and_then(|answers| answers.into_iter().map(Value::extract_error).collect()),
            Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        };
        answers.map_err(|error: RedisError| {
            let fault = Fault::from(error);
            if fault.needs_new_connection() {
                self.asking.discard(&link);
            }
            fault
        })
    }

    /// Sends a single command that reads. Retries it like [`run`](Self::run).
    pub(super) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Fault> {
        let last_try = Instant::now() + self.timeout;
        let mut one = Pipeline::with_capacity(1);
        one.add_command(command.clone());
        let mut answers = retry(last_try, || self.read(&one, last_try + self.timeout)).await?;
        let answer = answers.pop().ok_or_else(|| Fault::malformed("an answer is missing"))?;
        Ok(redis::from_redis_value(answer).map_err(RedisError::from)?)
    }

    /// Replaces the connections, because their server lacks changes that this process has read. Returns the fault to
    /// report.
    pub(super) fn leave_stale_server(&self) -> Fault {
        self.newest.forget();
        Fault::Undone(
            (ErrorKind::Client, "this Redis lacks changes that sessiond has read: it is not the right server").into(),
        )
    }
}
