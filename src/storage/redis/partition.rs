//! One partition of the registry, as this process reaches it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, Value};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{
    channel::{Channel, Link, Newest},
    clock::Clock,
    fault::Fault,
    script::Call,
    servers::{Servers, missing},
    url::{RedisUrl, Wait},
};

/// How long to wait before a step that was certainly not executed is sent again.
const RETRY: Duration = Duration::from_millis(20);

/// See the [module](self).
pub(super) struct Partition {
    pub(super) number: u32,
    /// The beginning of its keys. Only the part in braces decides which node of a cluster has them.
    prefix: String,
    /// For changes of sessions, and for calls that wait for Redis' replicas.
    changing: Channel,
    /// For everything else.
    asking: Channel,
    pub(super) newest: Newest,
    pub(super) clock: Clock,
    /// The newest position that this process has read, or that an answer named as the end of the log. A server whose
    /// log ends before it is the wrong one.
    read_up_to: AtomicU64,
    timeout: Duration,
    wait: Option<Wait>,
}

/// What a call needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mode {
    /// It must not take effect after its failure was reported.
    is_fenced: bool,
    /// It must survive a failover of Redis, as far as `wait_replicas` says.
    is_durable: bool,
}

/// For calls that change nothing, or that may take effect at any time.
pub(super) const ASK: Mode = Mode { is_fenced: false, is_durable: false };
/// For calls that must not take effect late.
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
            read_up_to: AtomicU64::new(0),
            timeout: url.timeout,
            wait: url.wait,
            prefix,
        }
    }

    /// Returns the name of a key of this partition.
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

    /// Returns how long Redis may take for an answer.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(super) fn read_up_to(&self) -> u64 {
        self.read_up_to.load(Ordering::Relaxed)
    }

    /// Records that the log reaches up to here.
    pub(super) fn has_read_up_to(&self, position: u64) {
        self.read_up_to.fetch_max(position, Ordering::Relaxed);
    }

    /// Records how far the log reaches after it has lost changes or has begun again.
    pub(super) fn set_read_up_to(&self, position: u64) {
        self.read_up_to.store(position, Ordering::Relaxed);
    }

    /// Runs a script. `call` is told until when the script is good, by this partition's clock.
    ///
    /// A step that was certainly not executed is sent again while there is time, over a new connection if necessary. A
    /// call returns within twice the timeout, plus the time to wait for Redis' replicas. A fenced call has no effect
    /// after its failure was returned.
    pub(super) async fn run<T: FromRedisValue>(&self, mode: Mode, call: impl Fn(u64) -> Call) -> Result<T, Fault> {
        let last_try = Instant::now() + self.timeout;
        loop {
            let outcome = self.try_run(mode, last_try + self.timeout, &call).await;
            match outcome {
                Err(Fault::Undone(_)) if Instant::now() + RETRY < last_try => sleep(RETRY).await,
                outcome => return Ok(redis::from_redis_value(outcome?).map_err(RedisError::from)?),
            }
        }
    }

    async fn try_run(&self, mode: Mode, deadline: Instant, call: &impl Fn(u64) -> Call) -> Result<Value, Fault> {
        let wait = self.wait.filter(|_| mode.is_durable);
        let channel = if wait.is_some() { &self.changing } else { &self.asking };
        let link = self.link(channel, deadline).await?;
        let over = Instant::now() + self.timeout;
        let call = call(self.clock.until(over));
        let outcome = self.send(channel, &link, &call, wait, over).await;
        if mode.is_fenced && matches!(outcome, Err(Fault::Unknown(_))) {
            sleep_until(over).await;
        }
        outcome
    }

    /// Sends a script that changes sessions, once. It can take effect until `over`, and the caller must not report a
    /// failure before then.
    pub(super) async fn change(&self, link: &Link, call: &Call, over: Instant) -> Result<Value, Fault> {
        self.send(&self.changing, link, call, self.wait, over).await
    }

    pub(super) async fn changing_link(&self, deadline: Instant) -> Result<Link, Fault> {
        self.link(&self.changing, deadline).await
    }

    async fn link(&self, channel: &Channel, deadline: Instant) -> Result<Link, Fault> {
        let linking = timeout_at(deadline, channel.link(&self.newest)).await;
        let link = linking.unwrap_or_else(|_| Err(Fault::unsent("Redis cannot be reached in time")))?;
        // The clock of another server says nothing about this one's.
        if self.clock.is_of(&link) {
            return Ok(link);
        }
        let reading = timeout_at(deadline, self.read_clock(&link)).await;
        match reading.unwrap_or_else(|_| Err(Fault::unsent("Redis does not answer in time"))) {
            Ok(()) => Ok(link),
            Err(fault) => {
                channel.discard(&link);
                Err(fault)
            }
        }
    }

    /// Reads the stored time, a lower estimate of the partition's clock. If it was stored long ago, the first script
    /// counts as too late, and the answer to it has the time.
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
        over: Instant,
    ) -> Result<Value, Fault> {
        let sending = async {
            match self.send_once(link, call.by_hash(), wait).await {
                Err(error) if error.code() == Some("NOSCRIPT") => self.send_once(link, &call.by_code(), wait).await,
                answer => answer,
            }
        };
        let mut is_late = false;
        let answer_by = over + wait.map_or(Duration::ZERO, |wait| wait.timeout);
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

    /// With `wait`, also returns how many of Redis' replicas have the change. WAIT counts for what was sent before it
    /// over the same connection.
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

    /// Sends a pipeline that only reads. Returns its answers, or the first error among them.
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

    /// Runs one command that reads.
    pub(super) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Fault> {
        let last_try = Instant::now() + self.timeout;
        let mut one = Pipeline::with_capacity(1);
        one.add_command(command.clone());
        loop {
            match self.read(&one, last_try + self.timeout).await {
                Err(Fault::Undone(_)) if Instant::now() + RETRY < last_try => sleep(RETRY).await,
                answers => {
                    let answer = answers?.pop().ok_or_else(|| Fault::malformed("an answer is missing"))?;
                    return Ok(redis::from_redis_value(answer).map_err(RedisError::from)?);
                }
            }
        }
    }

    /// Gives up the connections, because the server at their other end lacks what was read here. Returns the fault to
    /// go on with.
    pub(super) fn is_behind(&self) -> Fault {
        self.newest.forget();
        Fault::Undone(
            (ErrorKind::Client, "this Redis lacks changes that have been read here: it is not the right server").into(),
        )
    }
}
