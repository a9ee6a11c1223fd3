//! The end of one partition's log, read by one connection for all who follow it in this process.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use redis::{Value, aio::MultiplexedConnection};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    fault::Fault,
    registry::{Identity, Registry, session_of},
};
use crate::{
    session::{DestroyReason, SessionChange, SessionEvent},
    storage::{LogError, Position, RegistryId},
};

/// The newest changes that are kept here. Who is further behind reads them from Redis by itself.
const KEPT: usize = 1 << 14;

/// The most changes of one read.
const CHANGES_A_READ: usize = 4096;

/// A quiet connection is tried this often, and what is at its other end.
const QUIET: Duration = Duration::from_secs(1);

const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// One partition's tail.
pub(super) struct Tail {
    partition: u32,
    /// How many changes are kept here: none where Redis keeps so few that it may have given them up already.
    kept: usize,
    state: watch::Sender<State>,
}

struct State {
    /// None until Redis has answered for the first time.
    registry_id: Option<RegistryId>,
    /// The changes up to and with the one at `end`.
    events: VecDeque<SessionEvent>,
    end: u64,
    /// The entry at `end`, as Redis names it: a number by chance is a part of that, so that another entry at the same position
    /// is told apart.
    entry: Vec<u8>,
    /// Why the log cannot be read at present.
    fault: Option<Fault>,
}

/// What is known here of the changes after a position.
enum Known {
    Events(Vec<SessionEvent>),
    /// There are none yet.
    None,
    /// They are older than what is kept here, or newer than what has been read.
    Elsewhere,
}

impl Tail {
    pub(super) fn new(partition: u32, retain_events: usize) -> Self {
        let kept = if retain_events >= 2 * KEPT { KEPT } else { 0 };
        let state = State { registry_id: None, events: VecDeque::new(), end: 0, entry: Vec::new(), fault: None };
        Self { partition, kept, state: watch::Sender::new(state) }
    }

    /// The changes right after position `after`; waits for the first.
    pub(super) async fn changes_after(
        &self,
        registry: &Registry,
        registry_id: RegistryId,
        after: Position,
        limit: usize,
    ) -> Result<Vec<SessionEvent>, LogError> {
        let mut news = self.state.subscribe();
        let limit = limit.clamp(1, CHANGES_A_READ);
        loop {
            let mut identities = registry.identities();
            let identity = Arc::clone(&identities.borrow_and_update());
            if identity.registry_id != registry_id {
                return Err(LogError::Restarted);
            }
            let known = news.borrow_and_update().after(registry_id, after, limit)?;
            match known {
                Known::Events(events) => return Ok(events),
                Known::None => {}
                Known::Elsewhere => {
                    let events = self.read(registry, &identity, after, limit).await?;
                    if !events.is_empty() {
                        return Ok(events);
                    }
                }
            }
            tokio::select! {
                _ = news.changed() => {}
                _ = identities.changed() => {}
            }
        }
    }

    async fn read(
        &self,
        registry: &Registry,
        identity: &Identity,
        after: Position,
        limit: usize,
    ) -> Result<Vec<SessionEvent>, LogError> {
        // A script counts in doubles, and no log is that long.
        let Some(first) = after.0.checked_add(1).filter(|first| *first < 1 << 53) else {
            return Err(LogError::Restarted);
        };
        let call = registry.call(&registry.scripts.changes, self.partition, 2).arg(registry.key(self.partition, "log"));
        let bytes: Vec<u8> = match registry.link.run(call.arg(&identity.id).arg(first).arg(limit)).await {
            Err(Fault::Refused(code)) if code == "TRIMMED" => return Err(LogError::Trimmed),
            Err(Fault::Refused(code)) if code == "AHEAD" => return Err(LogError::Restarted),
            Err(Fault::Registry) => {
                registry.rejoin(Some(identity)).await.map_err(|fault| LogError::Storage(fault.into()))?;
                return Err(LogError::Restarted);
            }
            answer => answer.map_err(|fault| LogError::Storage(fault.into()))?,
        };
        bytes
            .chunks(EVENT_BYTES)
            .map(|bytes| event(bytes).ok_or_else(broken))
            .collect::<Result<_, _>>()
            .map_err(LogError::Storage)
    }

    /// Reads the log as it grows, for as long as it is polled.
    pub(super) async fn run(self: Arc<Self>, registry: Arc<Registry>) {
        let mut pause = FIRST_RETRY;
        loop {
            let began = Instant::now();
            let Err(fault) = self.follow(&registry).await;
            if !matches!(fault, Fault::Registry) {
                tracing::debug!(partition = self.partition, error = %fault, "the log cannot be read");
                self.state.send_modify(|state| state.fault = Some(fault));
            }
            if began.elapsed() > LAST_RETRY {
                pause = FIRST_RETRY;
            }
            sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(LAST_RETRY);
        }
    }

    /// Reads over one connection until it fails or the registry gets another id.
    async fn follow(&self, registry: &Registry) -> Result<std::convert::Infallible, Fault> {
        let log = registry.key(self.partition, "log");
        let mut connection = registry.link.dedicated(&log, QUIET).await?;
        let mut identities = registry.identities();
        let mut is_new = true;
        loop {
            let identity = Arc::clone(&identities.borrow_and_update());
            let checking = async {
                if is_new && self.partition == 0 {
                    // Redis may have come back without its newest leases, and with all it had logged.
                    registry.end_all_orphans(&identity).await?;
                }
                self.check(registry, &identity, &mut connection, &log).await
            };
            match checking.await {
                Err(Fault::Registry) => {
                    registry.rejoin(Some(&identity)).await?;
                    continue;
                }
                checked => checked?,
            }
            is_new = false;
            let checked = Instant::now();
            while checked.elapsed() < QUIET {
                let after = format!("{}-{}", self.state.borrow().end, u64::MAX);
                let mut read = redis::cmd("XREAD");
                read.arg("COUNT").arg(CHANGES_A_READ).arg("BLOCK").arg(QUIET.as_millis() as u64);
                read.arg("STREAMS").arg(&log).arg(after);
                let answer = tokio::select! {
                    answer = connection.send_packed_command(&read) => answer?.extract_error()?,
                    // The answer to come would be in the way of others on this connection.
                    _ = identities.changed() => return Err(Fault::Registry),
                };
                if !self.append(answer)? {
                    break;
                }
            }
        }
    }

    /// Sees that Redis still has this registry, and the entry that was read last; goes on from there.
    async fn check(
        &self,
        registry: &Registry,
        identity: &Identity,
        connection: &mut MultiplexedConnection,
        log: &str,
    ) -> Result<(), Fault> {
        let (known, end) = {
            let state = self.state.borrow();
            (state.registry_id == Some(identity.registry_id), state.end)
        };
        let position = if known { end.to_string() } else { String::new() };
        let call = registry.call(&registry.scripts.extent, self.partition, 2).arg(log).arg(&identity.id).arg(position);
        let (newest, oldest, _, entry): (u64, Vec<u8>, u64, Vec<u8>) = registry.link.run_on(connection, call).await?;
        let start = position_of(&oldest).map_or(newest, |oldest| oldest - 1);
        if !known {
            let call =
                registry.call(&registry.scripts.extent, self.partition, 2).arg(log).arg(&identity.id).arg(newest);
            let (.., entry): (u64, Vec<u8>, u64, Vec<u8>) = registry.link.run_on(connection, call).await?;
            self.state.send_modify(|state| {
                *state = State {
                    registry_id: Some(identity.registry_id),
                    events: VecDeque::new(),
                    end: newest,
                    entry,
                    fault: None,
                };
            });
            return Ok(());
        }
        let is_other = end > start && end <= newest && entry != self.state.borrow().entry;
        if end > newest || is_other {
            tracing::error!(
                partition = self.partition,
                read = end,
                newest,
                "Redis has lost changes; observers start again"
            );
            registry.abandon(identity, "").await?;
            return Err(Fault::Registry);
        }
        self.state.send_if_modified(|state| {
            let was_lost = state.fault.take().is_some();
            if end < start {
                // Trimmed past what was read: those who want what is between ask Redis, and hear it.
                state.events.clear();
                state.end = start;
                state.entry = Vec::new();
            }
            was_lost || end < start
        });
        Ok(())
    }

    /// Takes up what was read. Tells whether there was anything that comes right after what is here.
    fn append(&self, answer: Value) -> Result<bool, Fault> {
        let Value::Array(mut streams) = answer else { return Ok(false) };
        let Some(Value::Array(mut stream)) = streams.pop() else { return Ok(false) };
        let Some(Value::Array(entries)) = stream.pop() else { return Ok(false) };
        let mut last = Vec::new();
        let mut position = self.state.borrow().end;
        let mut events = Vec::with_capacity(entries.len());
        for entry in entries {
            let Some((id, event)) = parse(entry) else {
                let what = "an entry of the log is none of sessiond's";
                return Err(Fault::Broken(redis::RedisError::from((redis::ErrorKind::Parse, what))));
            };
            position += 1;
            if position_of(&id) != Some(position) {
                return Ok(false);
            }
            last = id;
            events.push(event);
        }
        self.state.send_modify(|state| {
            state.events.extend(events);
            let surplus = state.events.len().saturating_sub(self.kept);
            state.events.drain(..surplus);
            state.end = position;
            state.entry = last;
        });
        Ok(true)
    }
}

impl State {
    fn after(&self, registry_id: RegistryId, after: Position, limit: usize) -> Result<Known, LogError> {
        let start = self.end - self.events.len() as u64;
        let is_current = self.registry_id == Some(registry_id);
        if is_current && after.0 >= start && after.0 < self.end {
            let skip = (after.0 - start) as usize;
            return Ok(Known::Events(self.events.range(skip..).take(limit).copied().collect()));
        }
        match &self.fault {
            Some(fault) => Err(LogError::Storage(fault.clone().into())),
            None if is_current && after.0 == self.end => Ok(Known::None),
            None => Ok(Known::Elsewhere),
        }
    }
}

/// The number before the dash of an entry's id.
pub(super) fn position_of(id: &[u8]) -> Option<u64> {
    let digits = id.split(|byte| *byte == b'-').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn parse(entry: Value) -> Option<(Vec<u8>, SessionEvent)> {
    let Value::Array(entry) = entry else { return None };
    let mut parts = entry.into_iter();
    let (Some(Value::BulkString(id)), Some(Value::Array(fields))) = (parts.next(), parts.next()) else { return None };
    match fields.as_slice() {
        [_, Value::BulkString(bytes)] => Some((id, event(bytes)?)),
        _ => None,
    }
}

/// A letter for what happened, and the session.
const EVENT_BYTES: usize = 17;

fn event(bytes: &[u8]) -> Option<SessionEvent> {
    let (letter, session) = bytes.split_first()?;
    let change = match letter {
        b'c' => SessionChange::Created,
        b'r' => SessionChange::Destroyed(DestroyReason::Requested),
        b'x' => SessionChange::Destroyed(DestroyReason::LeaseExpired),
        b'v' => SessionChange::Destroyed(DestroyReason::LeaseRevoked),
        _ => return None,
    };
    Some(SessionEvent { session: session_of(session)?, change })
}

fn broken() -> crate::storage::StorageError {
    Fault::Broken(redis::RedisError::from((redis::ErrorKind::Parse, "a change in the log is none of sessiond's")))
        .into()
}
