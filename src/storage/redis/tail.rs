//! The end of one partition's log, read by one connection for all who follow it in this process.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use redis::Value;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    channel::{Channel, Link},
    entry::{Entry, mark_bytes},
    fault::{Answer, Fault},
    partition::{ASK, Partition},
    registry::{Identity, Registry},
    servers::Servers,
};
use crate::{
    session::SessionEvent,
    storage::{Changes, LogError, LogPoint, Mark, Position, RegistryId, StorageError},
};

/// The newest changes that are kept here. Who is further behind reads them from Redis by itself.
const KEPT: usize = 1 << 14;

/// The most changes of one answer, and the most entries of one read.
const CHANGES_AN_ANSWER: usize = 4096;
const ENTRIES_A_READ: usize = 512;

/// A quiet connection is tried this often, and what is at its other end.
const QUIET: Duration = Duration::from_secs(1);

const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// One partition's tail.
pub(super) struct Tail {
    partition: u32,
    channel: Channel,
    /// How many changes are kept here: none where Redis keeps so few that it may have given them up already.
    kept: usize,
    state: watch::Sender<State>,
}

struct State {
    /// None until Redis has answered for the first time.
    registry_id: Option<RegistryId>,
    /// The changes of the newest entries.
    events: VecDeque<SessionEvent>,
    /// The ends of these entries, and the place before them.
    ends: VecDeque<LogPoint>,
    /// Where the log ended when it was last asked.
    log_end: Position,
    /// Why the log cannot be read at present.
    fault: Option<Fault>,
}

/// What is known here of the changes after a place.
enum Known {
    Changes(Changes),
    /// There are none yet.
    None,
    /// They are older than what is kept here, or newer than what has been read.
    Elsewhere,
}

impl Tail {
    pub(super) fn new(partition: &Partition, servers: &Arc<Servers>, retain_events: usize) -> Self {
        let kept = if retain_events >= 2 * KEPT { KEPT } else { 0 };
        let state = State {
            registry_id: None,
            events: VecDeque::new(),
            ends: VecDeque::new(),
            log_end: Position(0),
            fault: None,
        };
        Self {
            partition: partition.number,
            channel: Channel::new(Arc::clone(servers), partition.key("meta")),
            kept,
            state: watch::Sender::new(state),
        }
    }

    /// The changes right after a place; waits for the first.
    pub(super) async fn changes_after(
        &self,
        registry: &Registry,
        registry_id: RegistryId,
        after: LogPoint,
        limit: usize,
    ) -> Result<Changes, LogError> {
        let mut news = self.state.subscribe();
        let limit = limit.clamp(1, CHANGES_AN_ANSWER);
        loop {
            let mut identities = registry.identities();
            let identity = Arc::clone(&identities.borrow_and_update());
            if identity.registry_id != registry_id {
                return Err(LogError::Restarted);
            }
            let known = news.borrow_and_update().after(registry_id, after, limit)?;
            match known {
                Known::Changes(changes) => return Ok(changes),
                Known::None => {}
                Known::Elsewhere => {
                    let changes = self.read(registry, &identity, after, limit).await?;
                    if !changes.events.is_empty() {
                        return Ok(changes);
                    }
                }
            }
            tokio::select! {
                _ = news.changed() => {}
                _ = identities.changed() => {}
            }
        }
    }

    /// Reads changes from Redis; none where the log ends at that place.
    async fn read(
        &self,
        registry: &Registry,
        identity: &Identity,
        after: LogPoint,
        limit: usize,
    ) -> Result<Changes, LogError> {
        // A script counts in doubles, and no log is that long.
        if after.position.0 >= 1 << 53 {
            return Err(LogError::Restarted);
        }
        let partition = registry.partition(self.partition);
        let read = partition.run::<Vec<Value>>(ASK, |_| {
            let call = registry.call(&registry.scripts.changes, partition, &["log"], 0).arg(&identity.birth);
            call.arg(after.position.0).arg(&mark_bytes(after.mark)[..]).arg(limit)
        });
        let entries = match read.await {
            Err(Fault::Script(Answer::Trimmed)) => return Err(LogError::Trimmed),
            Err(Fault::Script(Answer::Ahead | Answer::Other)) => return Err(LogError::Restarted),
            Err(Fault::Registry) => {
                registry.rejoin(Some(identity)).await.map_err(StorageError::from)?;
                return Err(LogError::Restarted);
            }
            entries => entries.map_err(StorageError::from)?,
        };
        let has_entries = !entries.is_empty();
        let mut changes = Changes { events: Vec::new(), mark: after.mark };
        let mut end: Option<LogPoint> = None;
        for entry in entries {
            let entry = Entry::parse(entry).map_err(StorageError::from)?;
            // Of the first entry only the end may be wanted.
            let follows = match end {
                Some(end) => entry.after == end,
                None => entry.after.position <= after.position,
            };
            if !follows {
                break;
            }
            let skip = after.position.0.saturating_sub(entry.after.position.0) as usize;
            changes.events.extend(entry.events.into_iter().skip(skip));
            changes.mark = entry.end.mark;
            end = Some(entry.end);
            if changes.events.len() >= limit {
                changes.events.truncate(limit);
                break;
            }
        }
        // Somebody deleted the entry that comes next.
        if has_entries && end.is_none() { Err(LogError::Trimmed) } else { Ok(changes) }
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
    async fn follow(&self, registry: &Registry) -> Result<Infallible, Fault> {
        let partition = registry.partition(self.partition);
        let link = self.channel.link(&partition.newest).await?;
        let followed = self.follow_over(registry, partition, &link).await;
        // An answer that is still to come would be in the way of others on this connection.
        self.channel.discard(&link);
        followed
    }

    async fn follow_over(&self, registry: &Registry, partition: &Partition, link: &Link) -> Result<Infallible, Fault> {
        let log = partition.key("log");
        let mut identities = registry.identities();
        let mut is_new = true;
        // Whether Redis gave an entry that does not follow what was read last.
        let mut has_gap = false;
        loop {
            let identity = Arc::clone(&identities.borrow_and_update());
            if !partition.newest.is(&link.server) {
                // The name of this Redis leads to another server by now.
                return Err(Fault::Registry);
            }
            let checking = async {
                // Redis may have come back without its newest leases, here or in the first partition, and with all that it had logged.
                if is_new {
                    match registry.end_orphans_of(partition, &identity).await {
                        Ok(()) => is_new = false,
                        // The log can be read all the same.
                        Err(Fault::Refused(_)) => {}
                        Err(fault) => return Err(fault),
                    }
                }
                self.check(registry, partition, &identity, has_gap).await
            };
            match checking.await {
                Err(Fault::Registry) => {
                    registry.rejoin(Some(&identity)).await?;
                    continue;
                }
                checked => checked?,
            }
            has_gap = self.misses_the_end(partition, link, &log).await?;
            if has_gap {
                continue;
            }
            let checked = Instant::now();
            while checked.elapsed() < QUIET {
                let end = self.state.borrow().end();
                let mut read = redis::cmd("XREAD");
                read.arg("COUNT").arg(ENTRIES_A_READ).arg("BLOCK").arg(QUIET.as_millis() as u64);
                read.arg("STREAMS").arg(&log).arg(format!("{}-{}", end.position.0, u64::MAX));
                let answer = tokio::select! {
                    answer = timeout(QUIET + partition.timeout(), link.send(&read)) => {
                        answer.map_err(|_| Fault::too_late())?.map_err(Fault::from)?
                    }
                    _ = identities.changed() => return Err(Fault::Registry),
                };
                has_gap = !self.append(partition, answer)?;
                if has_gap {
                    break;
                }
            }
        }
    }

    /// Sees that Redis still has this registry, and what was read last; goes on from there.
    async fn check(
        &self,
        registry: &Registry,
        partition: &Partition,
        identity: &Identity,
        has_gap: bool,
    ) -> Result<(), Fault> {
        let (is_known, end) = {
            let state = self.state.borrow();
            (state.registry_id == Some(identity.registry_id), state.end())
        };
        let known = partition.read_up_to();
        let found = registry.extent(partition, identity, is_known.then_some(end.position)).await?;
        if found.id.is_some_and(|id| id != identity.registry_id) {
            return Err(Fault::Registry);
        }
        if !found.is_whole {
            match registry.mend(partition, identity).await {
                Err(Fault::Refused(_)) | Ok(()) => {}
                Err(fault) => return Err(fault),
            }
        }
        let restart = |state: &mut State, from: LogPoint| {
            state.events.clear();
            state.ends = [from].into();
            state.registry_id = Some(identity.registry_id);
            state.log_end = from.position;
            state.fault = None;
            partition.set_read_up_to(from.position.0);
        };
        if !is_known {
            self.state.send_modify(|state| restart(state, found.held.end));
            return Ok(());
        }
        if end.position.max(Position(known)) > found.held.end.position || found.at.is_some_and(|mark| mark != end.mark)
        {
            let (partition, read, newest) = (self.partition, end.position.0, found.held.end.position.0);
            tracing::error!(partition, read, newest, "Redis has lost changes; observers start again");
            registry.abandon(identity, "").await?;
            return Err(Fault::Registry);
        }
        self.state.send_if_modified(|state| {
            let had_fault = state.fault.take().is_some();
            state.log_end = found.held.end.position;
            let is_gone = has_gap || found.at.is_none();
            if is_gone {
                // Trimmed past what was read, or an entry is missing: those who want what is between ask Redis, and hear it.
                restart(state, found.held.end);
            }
            had_fault || is_gone
        });
        Ok(())
    }

    /// Whether the log ends behind what was read, and Redis has nothing to give there: somebody deleted the newest entry.
    async fn misses_the_end(&self, partition: &Partition, link: &Link, log: &str) -> Result<bool, Fault> {
        let (end, log_end) = {
            let state = self.state.borrow();
            (state.end(), state.log_end)
        };
        if log_end <= end.position {
            return Ok(false);
        }
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT").arg(ENTRIES_A_READ).arg("STREAMS").arg(log);
        read.arg(format!("{}-{}", end.position.0, u64::MAX));
        let answer = timeout(partition.timeout(), link.send(&read)).await.map_err(|_| Fault::too_late())??;
        Ok(answer == Value::Nil || !self.append(partition, answer)?)
    }

    /// Takes up what was read. Tells whether all of it follows what is here.
    fn append(&self, partition: &Partition, answer: Value) -> Result<bool, Fault> {
        let entries = match answer {
            Value::Nil => return Ok(true),
            Value::Array(mut streams) => match streams.pop() {
                Some(Value::Array(mut stream)) => stream.pop(),
                _ => None,
            },
            _ => None,
        };
        let Some(Value::Array(entries)) = entries else { return Err(Fault::malformed("XREAD gave no stream")) };
        let mut end = self.state.borrow().end();
        let (mut events, mut ends) = (Vec::new(), Vec::new());
        let mut is_next = true;
        for entry in entries {
            let entry = Entry::parse(entry)?;
            // Another position or another mark: something is missing before it, or the log is another one by now.
            is_next = entry.after == end;
            if !is_next {
                break;
            }
            end = entry.end;
            ends.push(end);
            events.extend(entry.events);
        }
        if !ends.is_empty() {
            self.state.send_modify(|state| state.append(events, ends, self.kept));
            partition.has_read_up_to(end.position.0);
        }
        Ok(is_next)
    }
}

impl State {
    /// The place up to which the log has been read.
    fn end(&self) -> LogPoint {
        self.ends.back().copied().unwrap_or_default()
    }

    fn append(&mut self, events: Vec<SessionEvent>, ends: Vec<LogPoint>, kept: usize) {
        self.events.extend(events);
        self.ends.extend(ends);
        // Whole entries are given up.
        while self.events.len() > kept && self.ends.len() > 1 {
            let (Some(start), Some(next)) = (self.ends.pop_front(), self.ends.front()) else { break };
            self.events.drain(..(next.position.0 - start.position.0) as usize);
        }
    }

    fn after(&self, registry_id: RegistryId, after: LogPoint, limit: usize) -> Result<Known, LogError> {
        let (Some(start), end) = (self.ends.front(), self.end()) else {
            return self.elsewhere();
        };
        if self.registry_id != Some(registry_id) || after.position < start.position || after.position > end.position {
            return self.elsewhere();
        }
        if self.mark_at(after.position) != Some(after.mark) {
            return Err(LogError::Restarted);
        }
        if after.position == end.position {
            return match &self.fault {
                Some(_) => self.elsewhere(),
                None => Ok(Known::None),
            };
        }
        let skip = (after.position.0 - start.position.0) as usize;
        let events: Vec<SessionEvent> = self.events.range(skip..).take(limit).copied().collect();
        let last = Position(after.position.0 + events.len() as u64);
        Ok(Known::Changes(Changes { events, mark: self.mark_at(last).unwrap_or_default() }))
    }

    fn elsewhere(&self) -> Result<Known, LogError> {
        match &self.fault {
            Some(fault) => Err(LogError::Storage(fault.clone().into())),
            None => Ok(Known::Elsewhere),
        }
    }

    /// The mark of the entry that holds the change at a position, or at the place before all entries here.
    fn mark_at(&self, position: Position) -> Option<Mark> {
        let entry = self.ends.partition_point(|end| end.position < position);
        self.ends.get(entry).map(|end| end.mark)
    }
}
