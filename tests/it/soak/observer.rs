//! An observer that holds what it is told, and how it behaves.

use std::{collections::HashSet, net::SocketAddr, time::Duration};

use sessiond::{
    client::{Client, ResetReason, SnapshotSession, Watch, WatchOptions, WatchUpdate},
    session::{SessionChange, SessionEvent, SessionKey},
};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Changes, RETAINED};
use crate::{fake::soon, properties::replica::EVENTS_A_CHUNK};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Habit {
    Stays,
    /// Leaves for less than what the server retains, and comes back with its cursor.
    Leaves,
    /// Leaves for longer.
    StaysAway,
    /// Has no time for what it is told.
    Stalls,
    /// Is behind a network that cuts it off.
    IsCut,
}

impl Habit {
    pub(crate) const ALL: [Self; 5] = [Self::Stays, Self::Leaves, Self::StaysAway, Self::Stalls, Self::IsCut];

    /// Where it connects to.
    pub(crate) fn way(self, server: SocketAddr, cutter: SocketAddr) -> SocketAddr {
        if self == Self::IsCut { cutter } else { server }
    }

    /// When it next does what it does.
    fn next(self) -> Instant {
        let now = Instant::now();
        match self {
            Self::Stays | Self::IsCut => now + Duration::from_secs(24 * 60 * 60),
            Self::Leaves => now + Duration::from_millis(fastrand::u64(10..1500)),
            Self::StaysAway => now + Duration::from_secs(fastrand::u64(1..10)),
            Self::Stalls => now + Duration::from_millis(fastrand::u64(10..2000)),
        }
    }

    /// How long it does that.
    fn pause(self) -> Duration {
        match self {
            Self::StaysAway => Duration::from_secs(fastrand::u64(5..10)),
            Self::Stalls => Duration::from_millis(fastrand::u64(10..4000)),
            _ => Duration::from_millis(fastrand::u64(0..700)),
        }
    }
}

/// How many changes there were before a cursor's place, in all partitions; none where that is before a snapshot.
fn position(cursor: &str) -> Option<u64> {
    let parts: Vec<&str> = cursor.split('-').collect();
    let positions = parts.get(1..parts.len() - 1)?;
    positions.iter().map(|part| u64::from_str_radix(part, 16).ok()).sum()
}

pub(crate) struct Observer {
    pub(crate) habit: Habit,
    pub(crate) events: u64,
    /// How often it went on with its cursor.
    pub(crate) resumed: u64,
    pub(crate) resets: u64,
    cursor: Option<String>,
    /// The position of the last cursor it was given.
    position: u64,
    /// The one it had when it was told that it was away for too long, until it knows for how long that was.
    expired: Option<u64>,
    held: HashSet<SessionKey>,
    is_synced: bool,
    /// What it was told of each session, unless a reset came since the last round.
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
            held: HashSet::new(),
            is_synced: false,
            changes,
        }
    }

    fn watch(&mut self, way: SocketAddr) -> Watch {
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
        Client::connect_lazy(&format!("http://{way}")).unwrap().watch(options)
    }

    /// Comes to know what is there, while nothing changes.
    pub(crate) async fn sync(&mut self, way: SocketAddr) {
        if self.is_synced {
            return;
        }
        let mut watch = self.watch(way);
        while !self.is_synced {
            let update = soon(watch.next()).await.unwrap();
            self.take(update, watch.cursor());
        }
        self.changes.get_or_insert_default();
        self.cursor = watch.cursor().map(str::to_owned);
    }

    /// Observes until it holds the markers, and has its habits for as long as sessions change.
    pub(crate) async fn observe(&mut self, way: SocketAddr, until: Instant, markers: &[SessionKey]) {
        let mut watch = self.watch(way);
        let mut next = self.habit.next();
        while !(self.is_synced && markers.iter().all(|marker| self.held.contains(marker))) {
            tokio::select! {
                update = watch.next() => self.take(update.unwrap(), watch.cursor()),
                () = sleep_until(next), if next < until => {
                    match self.habit {
                        Habit::Stalls => sleep(self.habit.pause()).await,
                        _ => {
                            self.cursor = watch.cursor().map(str::to_owned);
                            drop(watch);
                            sleep(self.habit.pause()).await;
                            watch = self.watch(way);
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
                    assert!(self.held.insert(session), "{:?}: {session:?} is held already", self.habit);
                }
            }
            WatchUpdate::Synced { session_count } => {
                assert_eq!(session_count, self.held.len() as u64, "{:?}", self.habit);
                self.is_synced = true;
                if let Some(expired) = self.expired.take() {
                    let missed = self.position - expired;
                    assert!(missed > RETAINED - EVENTS_A_CHUNK as u64, "{:?}: it missed only {missed}", self.habit);
                }
            }
            WatchUpdate::Events(events) => events.iter().for_each(|event| self.apply(event)),
            WatchUpdate::Reset(reason) => {
                let expected = match reason {
                    ResetReason::SnapshotInterrupted => true,
                    // Whose server is killed while it stalls comes back with the cursor of what it had time for.
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
        let is_news = match event.change {
            SessionChange::Created => self.held.insert(event.session),
            SessionChange::Destroyed(_) => self.held.remove(&event.session),
            SessionChange::Moved { .. } => self.held.contains(&event.session),
        };
        assert!(is_news, "{:?}: {event:?}", self.habit);
        self.events += 1;
        if let Some(changes) = &mut self.changes {
            *changes.entry(event.session).or_default() += 1;
        }
    }

    /// Holds it to all that was written. The next round counts from there, whatever came in this one.
    pub(crate) fn is_exact(&mut self, written: &Changes) {
        let exist = written.iter().filter(|(_, changes)| **changes % 2 == 1).map(|(key, _)| *key);
        assert_eq!(self.held, exist.collect(), "{:?}", self.habit);
        if let Some(changes) = &self.changes {
            let wrong: Vec<_> =
                written.iter().filter(|(key, count)| changes.get(key).unwrap_or(&0) != *count).collect();
            assert!(wrong.is_empty(), "{:?} was told of another number of changes: {wrong:?}", self.habit);
        }
        self.changes = Some(written.clone());
    }
}
