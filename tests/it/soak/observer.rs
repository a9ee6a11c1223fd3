//! An observer that applies what it receives, with a given behaviour.

use std::{net::SocketAddr, time::Duration};

use sessiond::{
    client::{Client, ResetReason, SnapshotSession, Watch, WatchOptions, WatchUpdate},
    session::{SessionEvent, SessionKey},
    subject::Filter,
};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Changes, RETAINED};
use crate::{
    fake::soon,
    held::{self, Held},
    properties::replica::EVENTS_A_CHUNK,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Habit {
    Stays,
    /// Leaves briefly, so that the server retains what it misses, and resumes with its cursor.
    Leaves,
    /// Leaves for so long that its cursor expires.
    StaysAway,
    /// Stops reading from time to time.
    Stalls,
    /// Connects over a network that cuts it off.
    IsCut,
}

impl Habit {
    pub(crate) const ALL: [Self; 5] = [Self::Stays, Self::Leaves, Self::StaysAway, Self::Stalls, Self::IsCut];

    /// Returns the address that the observer connects to.
    pub(crate) fn addr(self, server: SocketAddr, cutter: SocketAddr) -> SocketAddr {
        if self == Self::IsCut { cutter } else { server }
    }

    /// Returns when the observer next leaves or stalls.
    fn next(self) -> Instant {
        let now = Instant::now();
        match self {
            Self::Stays | Self::IsCut => now + Duration::from_secs(24 * 60 * 60),
            Self::Leaves => now + Duration::from_millis(fastrand::u64(10..1500)),
            Self::StaysAway => now + Duration::from_secs(fastrand::u64(1..10)),
            Self::Stalls => now + Duration::from_millis(fastrand::u64(10..2000)),
        }
    }

    /// Returns for how long it then leaves or stalls.
    fn pause(self) -> Duration {
        match self {
            Self::StaysAway => Duration::from_secs(fastrand::u64(5..10)),
            Self::Stalls => Duration::from_millis(fastrand::u64(10..4000)),
            _ => Duration::from_millis(fastrand::u64(0..700)),
        }
    }
}

/// Returns the sum of a cursor's positions over all partitions, or `None` for the cursor before a snapshot.
fn position(cursor: &str) -> Option<u64> {
    let parts: Vec<&str> = cursor.split('-').collect();
    let positions = parts.get(1..parts.len() - 1)?;
    positions.iter().map(|part| u64::from_str_radix(part, 16).ok()).sum()
}

pub(crate) struct Observer {
    pub(crate) habit: Habit,
    pub(crate) events: u64,
    /// How often it resumed with its cursor.
    pub(crate) resumed: u64,
    pub(crate) resets: u64,
    cursor: Option<String>,
    /// The position of the last cursor that it received.
    position: u64,
    /// The position of its expired cursor, from a CURSOR_EXPIRED reset until `synced`.
    expired: Option<u64>,
    held: Held,
    is_synced: bool,
    /// How many changes it received for each session. `None` if there was a reset in this round.
    changes: Option<Changes>,
}

impl Observer {
    pub(crate) fn new(habit: Habit) -> Self {
        let changes = Some(Changes::new());
        Self {
            habit,
            events: 0,
            resumed: 0,
            resets: 0,
            cursor: None,
            position: 0,
            expired: None,
            held: Held::new(),
            is_synced: false,
            changes,
        }
    }

    fn watch(&mut self, addr: SocketAddr) -> Watch {
        let options = match self.cursor.take() {
            Some(cursor) => {
                self.resumed += 1;
                WatchOptions::after(cursor)
            }
            None => {
                self.forget();
                WatchOptions::snapshot()
            }
        };
        Client::connect_lazy(&format!("http://{addr}")).unwrap().watch(options)
    }

    /// Reads a snapshot while nothing changes, unless the observer is in sync already.
    pub(crate) async fn sync(&mut self, addr: SocketAddr) {
        if self.is_synced {
            return;
        }
        let mut watch = self.watch(addr);
        while !self.is_synced {
            let update = soon(watch.next()).await.unwrap();
            self.take(update, watch.cursor());
        }
        self.changes.get_or_insert_default();
        self.cursor = watch.cursor().map(str::to_owned);
    }

    /// Observes until it holds the markers. Before `until`, while sessions change, it also leaves or stalls by habit.
    pub(crate) async fn observe(&mut self, addr: SocketAddr, until: Instant, markers: &[SessionKey]) {
        let mut watch = self.watch(addr);
        let mut next = self.habit.next();
        while !(self.is_synced && markers.iter().all(|marker| self.held.contains_key(marker))) {
            tokio::select! {
                update = watch.next() => self.take(update.unwrap(), watch.cursor()),
                () = sleep_until(next), if next < until => {
                    match self.habit {
                        Habit::Stalls => sleep(self.habit.pause()).await,
                        _ => {
                            self.cursor = watch.cursor().map(str::to_owned);
                            drop(watch);
                            sleep(self.habit.pause()).await;
                            watch = self.watch(addr);
                        }
                    }
                    next = self.habit.next();
                }
            }
        }
        self.cursor = watch.cursor().map(str::to_owned);
    }

    fn forget(&mut self) {
        self.held.clear();
        self.is_synced = false;
        self.changes = None;
    }

    fn take(&mut self, update: WatchUpdate, cursor: Option<&str>) {
        self.position = cursor.and_then(position).unwrap_or(self.position);
        match update {
            WatchUpdate::Snapshot(sessions) => {
                for SnapshotSession { session, .. } in sessions {
                    assert!(self.held.insert(session, None).is_none(), "{:?}: {session:?} is held already", self.habit);
                }
            }
            WatchUpdate::Synced { session_count } => {
                assert_eq!(session_count, self.held.len() as u64, "{:?}", self.habit);
                self.is_synced = true;
                if let Some(expired) = self.expired.take() {
                    let missed = self.position - expired;
                    assert!(missed > RETAINED - EVENTS_A_CHUNK as u64, "{:?}: reset after only {missed}", self.habit);
                }
            }
            WatchUpdate::Events(events) => events.iter().for_each(|event| self.apply(event)),
            WatchUpdate::Reset(reason) => {
                let expected = match reason {
                    ResetReason::SnapshotInterrupted => true,
                    // If the server is killed during a stall, the observer resumes with an old cursor.
                    ResetReason::CursorExpired => matches!(self.habit, Habit::StaysAway | Habit::Stalls),
                    ResetReason::Lagged => self.habit == Habit::Stalls,
                    _ => false,
                };
                assert!(expected, "{:?}: {reason:?}", self.habit);
                if reason == ResetReason::CursorExpired {
                    self.expired = Some(self.position);
                }
                self.resets += 1;
                self.forget();
            }
            WatchUpdate::Disconnected { .. } => self.resumed += 1,
            _ => {}
        }
    }

    fn apply(&mut self, event: &SessionEvent) {
        let fits = held::apply(&mut self.held, event, &Filter::default());
        assert!(fits, "{:?}: {event:?} contradicts what the observer holds", self.habit);
        self.events += 1;
        if let Some(changes) = &mut self.changes {
            *changes.entry(event.session).or_default() += 1;
        }
    }

    /// Asserts that the observer holds exactly what was written. The next round starts from this state.
    pub(crate) fn is_exact(&mut self, written: &Changes) {
        let exist = written.iter().filter(|(_, changes)| **changes % 2 == 1).map(|(key, _)| (*key, None));
        assert_eq!(self.held, exist.collect(), "{:?}", self.habit);
        if let Some(changes) = &self.changes {
            let wrong: Vec<_> =
                written.iter().filter(|(key, count)| changes.get(key).unwrap_or(&0) != *count).collect();
            assert!(wrong.is_empty(), "{:?} received a different number of changes: {wrong:?}", self.habit);
        }
        self.changes = Some(written.clone());
    }
}
