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

/// What was certainly not done is sent again after this long.
const RETRY: Duration = Duration::from_millis(20);

/// See the [module](self).
pub(super) struct Partition {
    pub(super) number: u32,
    /// What its keys begin with. The part in braces alone decides on which node of a cluster they are.
    prefix: String,
    /// For what changes sessions, and what waits for Redis' replicas.
    changing: Channel,
    /// For everything else.
    asking: Channel,
    pub(super) newest: Newest,
    pub(super) clock: Clock,
    /// The position up to which the log has been read here, or was told of by an answer: a server whose log ends before it is not the right one.
    read_up_to: AtomicU64,
    timeout: Duration,
    wait: Option<Wait>,
}

/// How a call is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mode {
    /// It must not take effect after its failure was told.
    is_fenced: bool,
    /// It must outlive a failover of Redis, as far as `wait_replicas` says.
    is_durable: bool,
}

/// For calls that change nothing, or that may be made at any time.
pub(super) const ASK: Mode = Mode { is_fenced: false, is_durable: false };
/// For calls that must not take effect late.
pub(super) const FENCED: Mode = Mode { is_fenced: true, is_durable: false };
/// For changes that must not be lost.
pub(super) const DURABLE: Mode = Mode { is_fenced: false, is_durable: true };
/// For both.
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

    /// A key of this partition.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The key of a bucket's hash.
    pub(super) fn bucket_key(&self, bucket: u32) -> String {
        format!("{}b{bucket}", self.prefix)
    }

    /// The key of the buckets that sessions under a lease are in.
    pub(super) fn lease_key(&self, lease: &[u8]) -> String {
        use std::fmt::Write;
        let mut key = self.key("l");
        lease.iter().for_each(|byte| {
            let _ = write!(key, "{byte:02x}");
        });
        key
    }

    /// How long Redis has for an answer.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(super) fn read_up_to(&self) -> u64 {
        self.read_up_to.load(Ordering::Relaxed)
    }

    /// Notes that the log reaches up to here.
    pub(super) fn has_read_up_to(&self, position: u64) {
        self.read_up_to.fetch_max(position, Ordering::Relaxed);
    }

    /// Notes up to where the log reaches, which has been lost, or begun anew.
    pub(super) fn set_read_up_to(&self, position: u64) {
        self.read_up_to.store(position, Ordering::Relaxed);
    }

    /// Runs a script. `call` is given until when it is good, by this partition's clock.
    ///
    /// What was certainly not done is sent again while there is time, over another connection where this one is of no more use. A call
    /// is answered within twice the timeout (and the time to wait for Redis' replicas), and one that is fenced has no effect after its failure was
    /// answered.
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

    /// Sends a script that changes sessions, once. `over` is when it can no longer take effect; until then nobody may be told that it failed, which
    /// the caller sees to.
    pub(super) async fn change(&self, link: &Link, call: &Call, over: Instant) -> Result<Value, Fault> {
        self.send(&self.changing, link, call, self.wait, over).await
    }

    pub(super) async fn changing_link(&self, deadline: Instant) -> Result<Link, Fault> {
        self.link(&self.changing, deadline).await
    }

    async fn link(&self, channel: &Channel, deadline: Instant) -> Result<Link, Fault> {
        let linking = timeout_at(deadline, channel.link(&self.newest)).await;
        let link = linking.unwrap_or_else(|_| Err(Fault::unsent("Redis cannot be reached in time")))?;
        // Not by the clock of another server.
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

    /// Reads the time that the partition's clock shows at least. If that is long ago, the first script is answered that it is late, and when.
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

    /// With `wait`, tells how many of Redis' replicas have what was changed: WAIT is about what came before it on its connection.
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

    /// Sends a pipeline that only reads, and gives its answers, of which none is an error.
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

    /// Gives up the connections for asking, since the server at their other end lacks what has been read.
    pub(super) fn is_behind(&self) -> Fault {
        self.newest.forget();
        Fault::Undone(
            (ErrorKind::Client, "this Redis lacks changes that have been read here: it is not the right server").into(),
        )
    }
}
