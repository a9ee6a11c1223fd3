//! Reads the end of one partition's log, over a single connection for all followers in this process.

use std::{collections::VecDeque, convert::Infallible, ops::Range, sync::Arc, time::Duration};

use redis::Value;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    channel::{Channel, Link},
    entry::{Entry, mark_bytes, mark_in},
    fault::{Answer, Fault},
    partition::{ASK, Partition},
    promised::{Promised, Unkept},
    registry::{Identity, Registry, TRIES},
    servers::Servers,
};
use crate::{
    backoff::Backoff,
    session::SessionEvent,
    storage::{Changes, LogError, LogPoint, Mark, Position, RegistryId, StorageError},
};

/// The maximum number of changes kept in memory. A follower that is further behind reads from Redis.
const KEPT: usize = 1 << 14;

/// The minimum number of entry ends kept in memory, because answers in flight may name points that the tail has just
/// passed.
const ENDS_KEPT: usize = 1024;

/// The maximum number of changes in one answer, and of entries in one read.
const CHANGES_AN_ANSWER: usize = 4096;
const ENTRIES_A_READ: usize = 512;

/// The interval between checks of the connection and its server while the log is quiet.
const QUIET: Duration = Duration::from_secs(1);

const FIRST_RETRY: Duration = Duration::from_millis(20);
const LONGEST_RETRY: Duration = Duration::from_secs(1);

/// The tail of one partition's log.
pub(super) struct Tail {
    partition: u32,
    channel: Channel,
    /// How many changes are kept in memory. 0 if Redis retains so few changes that it may have trimmed these already.
    kept: usize,
    state: watch::Sender<State>,
}

struct State {
    /// `None` until the log was found for the first time.
    registry_id: Option<RegistryId>,
    /// The latest changes.
    events: VecDeque<SessionEvent>,
    /// The ends of the latest entries: those of `events`, and some before them. Empty until the log was found.
    ends: VecDeque<LogPoint>,
    /// Where the log ended when Redis was last asked.
    log_end: Position,
    /// The points ahead of the tail that this process has named to callers.
    promised: Promised,
    /// When Redis last answered.
    answered: Instant,
    /// The reason why the log cannot be read, if it cannot.
    fault: Option<Fault>,
}

/// What the tail has after a point of the log.
enum Known {
    Changes(Changes),
    /// There are no changes yet.
    None,
    /// The point is before the changes that the tail keeps, or ahead of what it has read. Redis must be asked.
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
            promised: Promised::default(),
            answered: Instant::now(),
            fault: None,
        };
        Self {
            partition: partition.number,
            channel: Channel::new(Arc::clone(servers), partition.key("meta")),
            kept,
            state: watch::Sender::new(state),
        }
    }

    /// Returns the changes right after a point. Waits until there is one.
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

    /// Reads the changes after a point from Redis, up to the point that the tail has reached. May return no changes.
    async fn read(
        &self,
        registry: &Registry,
        identity: &Identity,
        after: LogPoint,
        limit: usize,
    ) -> Result<Changes, LogError> {
        // Numbers in scripts are doubles. No log is that long.
        if after.position.0 >= 1 << 53 {
            return Err(LogError::Restarted);
        }
        let partition = registry.partition(self.partition);
        let tail = self.reached(registry, identity).await.map_err(StorageError::from)?;
        let read = partition.run::<Vec<Value>>(ASK, |_| {
            let call = registry.call(&registry.scripts.changes, partition, &["log"], 0).arg(&identity.birth);
            let call = call.arg(tail.position.0).arg(&mark_bytes(tail.mark)[..]);
            call.arg(after.position.0).arg(&mark_bytes(after.mark)[..]).arg(limit)
        });
        let entries = match read.await {
            Err(Fault::Script(Answer::Trimmed)) => return Err(LogError::Trimmed),
            Err(Fault::Script(Answer::Ahead | Answer::Other)) => return Err(LogError::Restarted),
            Err(Fault::Script(Answer::Lost)) => {
                self.abandon_history(registry, identity).await.map_err(StorageError::from)?;
                return Err(LogError::Restarted);
            }
            Err(Fault::Registry) => {
                registry.rejoin(Some(identity)).await.map_err(StorageError::from)?;
                return Err(LogError::Restarted);
            }
            entries => entries.map_err(StorageError::from)?,
        };
        let mut changes = Changes { events: Vec::new(), mark: after.mark };
        let mut end: Option<LogPoint> = None;
        for entry in entries {
            let entry = Entry::parse(entry).map_err(StorageError::from)?;
            // The first entry may begin before the requested point.
            let follows = match end {
                Some(end) => entry.after == end,
                None => entry.after.position <= after.position,
            };
            if !follows {
                break;
            }
            end = Some(entry.end);
            if entry.end.position > tail.position {
                // The tail must read this entry first, because only the tail checks the promised points.
                break;
            }
            let skip = after.position.0.saturating_sub(entry.after.position.0) as usize;
            changes.events.extend(entry.events.into_iter().skip(skip));
            changes.mark = entry.end.mark;
            if changes.events.len() >= limit {
                changes.events.truncate(limit);
                break;
            }
        }
        // If nothing was read although the tail has read further, somebody has deleted the next entry.
        let is_gone = changes.events.is_empty() && after.position < tail.position;
        if is_gone { Err(LogError::Trimmed) } else { Ok(changes) }
    }

    /// Reads the extent of the log. Its end becomes a promised point.
    pub(super) async fn extent(&self, registry: &Registry, identity: &Identity) -> Result<Range<LogPoint>, Fault> {
        let partition = registry.partition(self.partition);
        for _ in 0..TRIES {
            let found = registry.extent(partition, identity, None).await?;
            if found.id.is_some_and(|id| id != identity.registry_id) {
                return Err(Fault::Registry);
            }
            if self.promise(registry, identity, found.held.end).await? {
                return Ok(found.held);
            }
        }
        Err(too_fast())
    }

    /// Reads the mark at a position, if the log holds it. Ahead of the tail, it becomes a promised point.
    pub(super) async fn mark_at(
        &self,
        registry: &Registry,
        identity: &Identity,
        position: Position,
    ) -> Result<Option<Mark>, Fault> {
        // Numbers in scripts are doubles. No log is that long.
        if position.0 >= 1 << 53 {
            return Ok(None);
        }
        let partition = registry.partition(self.partition);
        for _ in 0..TRIES {
            let tail = self.reached(registry, identity).await?;
            let asked = partition.run::<Vec<u8>>(ASK, |_| {
                let call = registry.call(&registry.scripts.marks, partition, &["log"], 0).arg(&identity.birth);
                call.arg(tail.position.0).arg(&mark_bytes(tail.mark)[..]).arg(position.0)
            });
            let mark = match asked.await {
                Err(Fault::Script(Answer::Lost)) => return Err(self.abandon_history(registry, identity).await?),
                asked => mark_in(&asked?),
            };
            match mark {
                Some(mark) if position > tail.position => {
                    if self.promise(registry, identity, LogPoint { position, mark }).await? {
                        return Ok(Some(mark));
                    }
                }
                mark => return Ok(mark),
            }
        }
        Err(too_fast())
    }

    /// Checks that a point, which Redis has just named, belongs to the history that the tail reads. A point ahead of
    /// the tail is kept, and checked when the tail reaches it, before followers get later changes. Returns false if the
    /// tail no longer keeps the mark at the point: the caller then asks Redis for a newer one.
    pub(super) async fn promise(
        &self,
        registry: &Registry,
        identity: &Identity,
        point: LogPoint,
    ) -> Result<bool, Fault> {
        self.reached(registry, identity).await?;
        let partition = registry.partition(self.partition);
        let mut outcome = Ok(true);
        self.state.send_if_modified(|state| {
            outcome = state.promise(identity.registry_id, point);
            if outcome.is_ok() {
                partition.note_read_up_to(point.position.0);
            }
            false
        });
        if matches!(outcome, Err(Fault::Script(Answer::Lost))) {
            return Err(self.abandon_history(registry, identity).await?);
        }
        outcome
    }

    /// Returns the point that the tail has reached in the log of this registry. Waits until the tail has found the log.
    async fn reached(&self, registry: &Registry, identity: &Identity) -> Result<LogPoint, Fault> {
        let mut news = self.state.subscribe();
        let mut identities = registry.identities();
        let begins = async {
            loop {
                if **identities.borrow_and_update() != *identity {
                    return Err(Fault::Registry);
                }
                {
                    let state = news.borrow_and_update();
                    match &state.fault {
                        _ if state.registry_id == Some(identity.registry_id) => return Ok(state.end()),
                        Some(fault) => return Err(fault.clone()),
                        None => {}
                    }
                }
                tokio::select! {
                    _ = news.changed() => {}
                    _ = identities.changed() => {}
                }
            }
        };
        let begun = timeout(registry.partition(self.partition).timeout(), begins).await;
        begun.unwrap_or_else(|_| Err(Fault::unsent("could not read the log of a partition in time")))
    }

    /// Gives the registry a new id, because Redis has lost changes that this process has read or a point that it has
    /// promised. Returns the fault to report.
    async fn abandon_history(&self, registry: &Registry, identity: &Identity) -> Result<Fault, Fault> {
        if registry.identity().registry_id == identity.registry_id {
            tracing::error!(partition = self.partition, "Redis has lost changes; observers are reset");
            registry.abandon(identity, "").await?;
            registry.rejoin(Some(identity)).await?;
        }
        Ok(Fault::Registry)
    }

    /// Reads the log as it grows, until the future is dropped.
    pub(super) async fn run(self: Arc<Self>, registry: Arc<Registry>) {
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        loop {
            let began = Instant::now();
            let Err(fault) = self.follow(&registry).await;
            let is_changed = matches!(fault, Fault::Registry);
            if !is_changed {
                tracing::debug!(partition = self.partition, error = %fault, "cannot read the log of a partition");
                let timeout = registry.partition(self.partition).timeout();
                self.state.send_if_modified(|state| {
                    // If the connection is replaced within the timeout, there is no outage. For example, Redis ends the
                    // read when it becomes a replica.
                    let is_outage = !fault.needs_new_connection() || state.answered.elapsed() >= timeout;
                    if is_outage {
                        state.fault = Some(fault);
                    }
                    is_outage
                });
            }
            // After a change of the id, calls wait until the tail finds the log again, so retry soon.
            if is_changed || began.elapsed() > LONGEST_RETRY {
                backoff.reset();
            }
            sleep(backoff.jittered_pause()).await;
        }
    }

    /// Reads over one connection until the connection fails or the registry's id changes.
    async fn follow(&self, registry: &Registry) -> Result<Infallible, Fault> {
        let partition = registry.partition(self.partition);
        let link = self.channel.link(&partition.newest).await?;
        let followed = self.follow_over(registry, partition, &link).await;
        // The answer to an abandoned read may still arrive over this connection.
        self.channel.discard(&link);
        followed
    }

    async fn follow_over(&self, registry: &Registry, partition: &Partition, link: &Link) -> Result<Infallible, Fault> {
        let log = partition.key("log");
        let mut identities = registry.identities();
        let mut is_new = true;
        let mut next_read = Instant::now();
        // Whether Redis returned an entry that does not follow the one read last.
        let mut has_gap = false;
        loop {
            let identity = Arc::clone(&identities.borrow_and_update());
            if !partition.newest.is(&link.server) {
                // The host name resolves to another server now.
                return Err(Fault::Registry);
            }
            let checking = async {
                self.check(registry, partition, &identity, has_gap).await?;
                // Redis may have come back without the latest state of leases, in this partition or in the first one,
                // but with the whole log.
                if is_new {
                    match registry.end_orphans_of(partition, &identity).await {
                        Ok(()) => is_new = false,
                        // The log can still be read.
                        Err(Fault::Refused(_) | Fault::Unreplicated { .. }) => {}
                        Err(fault) => return Err(fault),
                    }
                }
                Ok(())
            };
            match checking.await {
                Err(Fault::Registry) => {
                    registry.rejoin(Some(&identity)).await?;
                    continue;
                }
                checked => checked?,
            }
            has_gap = self.lacks_last_entry(registry, partition, &identity, link, &log).await?;
            if has_gap {
                continue;
            }
            let checked = Instant::now();
            while checked.elapsed() < QUIET {
                let end = self.state.borrow().end();
                let mut read = redis::cmd("XREAD");
                read.arg("COUNT").arg(ENTRIES_A_READ).arg("BLOCK").arg(QUIET.as_millis() as u64);
                read.arg("STREAMS").arg(&log).arg(format!("{}-{}", end.position.0, u64::MAX));
                let reading = async {
                    // Even a timer that is due takes about a millisecond, so a small fleet does without.
                    if next_read > Instant::now() {
                        sleep_until(next_read).await;
                    }
                    let began = Instant::now();
                    let answer = timeout(QUIET + partition.timeout(), link.send(&read)).await;
                    Ok::<_, Fault>((began, answer.map_err(|_| Fault::too_late())??))
                };
                let (began, answer) = tokio::select! {
                    read = reading => read?,
                    _ = identities.changed() => return Err(Fault::Registry),
                    // The host name resolves to another server now.
                    () = partition.newest.is_no_longer(&link.server) => return Err(Fault::Registry),
                };
                self.note_answer();
                let entries = entries_in(answer)?;
                // The pause counts from when the read began, so it ends before the first change after a quiet time.
                // There is none if Redis probably has more entries already, because the tail must keep up.
                let is_full = entries.len() == ENTRIES_A_READ;
                next_read = if is_full { began } else { began + partition.pace.pause() };
                has_gap = !self.append(registry, partition, &identity, entries).await?;
                if has_gap {
                    break;
                }
            }
        }
    }

    fn note_answer(&self) {
        self.state.send_if_modified(|state| {
            state.answered = Instant::now();
            false
        });
    }

    /// Checks that Redis still has this registry, and the entry that was read last. If that entry was trimmed or a
    /// later one is missing, the tail continues from the end of the log.
    async fn check(
        &self,
        registry: &Registry,
        partition: &Partition,
        identity: &Identity,
        has_gap: bool,
    ) -> Result<(), Fault> {
        let (is_known, end, promised) = {
            let state = self.state.borrow();
            (state.registry_id == Some(identity.registry_id), state.end(), state.promised.newest())
        };
        let known = partition.read_up_to();
        let found = registry.extent(partition, identity, is_known.then_some(end.position)).await?;
        self.note_answer();
        if found.id.is_some_and(|id| id != identity.registry_id) {
            return Err(Fault::Registry);
        }
        if !found.is_whole {
            match registry.mend(partition, identity).await {
                Err(Fault::Refused(_) | Fault::Unreplicated { .. }) | Ok(()) => {}
                Err(fault) => return Err(fault),
            }
        }
        let restart = |state: &mut State, from: LogPoint| {
            state.events.clear();
            state.ends = [from].into();
            state.registry_id = Some(identity.registry_id);
            state.log_end = from.position;
            state.promised = Promised::default();
            state.fault = None;
            partition.set_read_up_to(from.position.0);
        };
        if !is_known {
            self.state.send_modify(|state| restart(state, found.held.end));
            return Ok(());
        }
        let promised_end = end.position.max(Position(known)).max(promised.unwrap_or_default());
        if promised_end > found.held.end.position || found.at.is_some_and(|mark| mark != end.mark) {
            return Err(self.abandon_history(registry, identity).await?);
        }
        self.state.send_if_modified(|state| {
            let had_fault = state.fault.take().is_some();
            state.log_end = found.held.end.position;
            let is_gone = has_gap || found.at.is_none();
            if is_gone {
                // The log was trimmed past the end of the tail, or an entry is missing. Followers that need the changes
                // in between ask Redis, and get an error.
                restart(state, found.held.end);
            }
            had_fault || is_gone
        });
        Ok(())
    }

    /// Returns whether the latest entry is missing: the log ends after the last entry that was read, but Redis has no
    /// entry there.
    async fn lacks_last_entry(
        &self,
        registry: &Registry,
        partition: &Partition,
        identity: &Identity,
        link: &Link,
        log: &str,
    ) -> Result<bool, Fault> {
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
        let entries = entries_in(answer)?;
        Ok(entries.is_empty() || !self.append(registry, partition, identity, entries).await?)
    }

    /// Appends the entries that were read. Returns whether they continue the tail without a gap.
    async fn append(
        &self,
        registry: &Registry,
        partition: &Partition,
        identity: &Identity,
        entries: Vec<Value>,
    ) -> Result<bool, Fault> {
        let mut end = self.state.borrow().end();
        let (mut events, mut ends) = (Vec::new(), Vec::new());
        let mut is_next = true;
        for entry in entries {
            let entry = Entry::parse(entry)?;
            // If the position or the mark differs, an entry is missing before this one, or this is another history.
            is_next = entry.after == end;
            if !is_next {
                break;
            }
            end = entry.end;
            ends.push(end);
            events.extend(entry.events);
        }
        if !ends.is_empty() {
            let mut is_same = true;
            self.state.send_if_modified(|state| {
                is_same = state.promised.pass(&ends);
                if is_same {
                    state.append(events, ends, self.kept);
                }
                is_same
            });
            if !is_same {
                return Err(self.abandon_history(registry, identity).await?);
            }
            partition.note_read_up_to(end.position.0);
        }
        Ok(is_next)
    }
}

/// Returns the entries in an answer to XREAD of one stream.
fn entries_in(answer: Value) -> Result<Vec<Value>, Fault> {
    let last = |value| match value {
        Value::Array(mut parts) => parts.pop(),
        _ => None,
    };
    match answer {
        Value::Nil => Ok(Vec::new()),
        answer => match last(answer).and_then(last) {
            Some(Value::Array(entries)) => Ok(entries),
            _ => Err(Fault::malformed("XREAD returned no stream")),
        },
    }
}

/// Returns the fault if, several times in a row, the tail had long passed the point in Redis' answer.
pub(super) fn too_fast() -> Fault {
    Fault::unsent("the log grows faster than Redis answers calls about it")
}

impl State {
    /// Returns the point up to which the log was read.
    fn end(&self) -> LogPoint {
        self.ends.back().copied().unwrap_or_default()
    }

    fn append(&mut self, events: Vec<SessionEvent>, ends: Vec<LogPoint>, kept: usize) {
        self.events.extend(events);
        self.ends.extend(ends);
        self.events.drain(..self.events.len().saturating_sub(kept));
        let start = self.start();
        while self.ends.len() > ENDS_KEPT && self.ends.get(1).is_some_and(|second| second.position <= start) {
            self.ends.pop_front();
        }
    }

    /// Returns the position just before the kept changes.
    fn start(&self) -> Position {
        Position(self.end().position.0 - self.events.len() as u64)
    }

    /// See [`Tail::promise`].
    fn promise(&mut self, registry_id: RegistryId, point: LogPoint) -> Result<bool, Fault> {
        if self.registry_id != Some(registry_id) {
            return Err(Fault::Registry);
        }
        if point.position > self.end().position {
            return match self.promised.keep(point) {
                Ok(()) => Ok(true),
                Err(Unkept::Lost) => Err(Fault::Script(Answer::Lost)),
                Err(Unkept::Full) => Err(Fault::unsent("the log grows faster than sessiond reads it")),
            };
        }
        match self.mark_at(point.position) {
            Some(mark) if mark == point.mark => Ok(true),
            Some(_) => Err(Fault::Script(Answer::Lost)),
            None => Ok(false),
        }
    }

    fn after(&self, registry_id: RegistryId, after: LogPoint, limit: usize) -> Result<Known, LogError> {
        let (start, end) = (self.start(), self.end().position);
        if self.registry_id != Some(registry_id) || after.position < start || after.position > end {
            return self.elsewhere();
        }
        if self.mark_at(after.position) != Some(after.mark) {
            return Err(LogError::Restarted);
        }
        if after.position == end {
            return match &self.fault {
                Some(_) => self.elsewhere(),
                None => Ok(Known::None),
            };
        }
        let skip = (after.position.0 - start.0) as usize;
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

    /// Returns the mark at a position, if the end of its entry is kept.
    fn mark_at(&self, position: Position) -> Option<Mark> {
        if self.ends.front().is_none_or(|start| position < start.position) {
            return None;
        }
        let entry = self.ends.partition_point(|end| end.position < position);
        self.ends.get(entry).map(|end| end.mark)
    }
}
