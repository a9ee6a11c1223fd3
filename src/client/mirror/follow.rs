//! The task of a mirror: reads the stream and applies it.

use std::{
    collections::HashSet,
    future::{Future, pending},
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use futures_util::future::{Either, select};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    MirrorChange, Shared,
    changes::ChangeSender,
    contents::{Contents, INSERT_BATCH},
    leases::Slots,
    progress::Progress,
};
use crate::{
    client::{
        Client, ClientError, LeaseQuery, MAX_BATCH, Place, SnapshotSession, Watch, WatchUpdate, backoff::Backoff,
    },
    session::{LeaseId, SessionChange, SessionEvent, SessionKey},
    table::LeaseSlot,
};

/// How long a message waits for the owners of leases that are new in it, before its sessions are shown without them.
const OWNER_WAIT: Duration = Duration::from_secs(1);
/// The longest pause between two attempts to look up owners.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The most leases that are looked up in one call: an answer holds 10,000.
const OWNERS_A_CALL: usize = 10_000;
const _: () = assert!(OWNERS_A_CALL <= MAX_BATCH);

type Owners = Result<Vec<(LeaseId, Option<Arc<str>>)>, ClientError>;

pub(super) struct Follower {
    shared: Arc<Shared>,
    progress: watch::Sender<Progress>,
    changes: ChangeSender,
    client: Client,
    /// The leases that the mirror shows. Empty for all.
    leases: HashSet<LeaseId>,
    slots: Slots,
    /// The contents of the snapshot that is being read.
    next: Option<Contents>,
    /// Sessions of the snapshot that are to be inserted.
    waiting: Vec<(SessionKey, LeaseSlot)>,
    /// A lookup of owners that is retried in the background.
    retry: Option<Pin<Box<dyn Future<Output = Owners> + Send>>>,
    backoff: Backoff,
}

impl Follower {
    pub(super) fn new(
        shared: Arc<Shared>,
        progress: watch::Sender<Progress>,
        changes: ChangeSender,
        client: Client,
        leases: &[LeaseId],
    ) -> Self {
        let slots = Slots::new(Arc::clone(&shared.holders));
        let next = Some(shared.contents.empty());
        let leases = leases.iter().copied().collect();
        Self {
            shared,
            progress,
            changes,
            client,
            leases,
            slots,
            next,
            waiting: Vec::new(),
            retry: None,
            backoff: Backoff::default(),
        }
    }

    /// Applies the updates of a watch. Never returns.
    pub(super) async fn run(mut self, mut watch: Watch) {
        loop {
            let update = {
                let retry = async {
                    match &mut self.retry {
                        Some(retry) => retry.await,
                        None => pending().await,
                    }
                };
                match select(pin!(watch.next()), pin!(retry)).await {
                    Either::Left((update, _)) => Ok(update),
                    Either::Right((owners, _)) => Err(owners),
                }
            };
            match update {
                Ok(update) => self.apply(update, watch.places().to_vec()).await,
                Err(owners) => {
                    self.retry = None;
                    self.enter_owners(owners);
                }
            }
        }
    }

    async fn apply(&mut self, update: Result<WatchUpdate, ClientError>, places: Vec<Place>) {
        // A stream that has resumed sends a heartbeat once it has caught up.
        let is_current = !matches!(update, Ok(WatchUpdate::Events(_)));
        match update {
            Ok(WatchUpdate::Subscribed { registry_id, heartbeat, .. }) => {
                self.progress.send_modify(|progress| progress.subscribed(registry_id, heartbeat));
                return;
            }
            Ok(WatchUpdate::Snapshot(sessions)) => {
                self.learn_owners(sessions.iter().filter_map(|found| found.lease)).await;
                self.insert(sessions);
                return;
            }
            Ok(WatchUpdate::Events(events)) => {
                let kept: Vec<_> = events.iter().filter(|event| self.is_kept(event)).collect();
                self.learn_owners(kept.iter().filter_map(|event| event.lease)).await;
                self.insert_waiting();
                events.iter().for_each(|event| self.change(event));
                self.changes.send();
                self.slots.forget_idle();
            }
            Ok(WatchUpdate::Synced { .. }) => {
                self.replace();
                self.progress.send_modify(|progress| progress.has_synced = true);
            }
            Ok(WatchUpdate::Heartbeat) => {}
            Ok(WatchUpdate::Reset(reason)) => {
                self.abandon();
                self.next = Some(self.shared.contents.empty());
                self.progress.send_modify(|progress| progress.reset(reason));
                return;
            }
            Ok(WatchUpdate::Disconnected { .. }) => {
                self.progress.send_modify(|progress| progress.is_live = false);
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot mirror the registry: retrying");
                self.progress.send_modify(|progress| {
                    progress.is_live = false;
                    progress.failure = Some(error);
                });
                return;
            }
        }
        if self.next.is_none() {
            self.progress.send_modify(|progress| progress.reached(&places, is_current));
        }
    }

    /// Inserts sessions of a snapshot, once enough of them have come.
    fn insert(&mut self, sessions: Vec<SnapshotSession>) {
        for SnapshotSession { session, lease } in sessions {
            let slot = self.slots.slot_of(lease);
            self.slots.enter(slot);
            self.waiting.push((session, slot));
        }
        if self.waiting.len() >= INSERT_BATCH {
            self.insert_waiting();
        }
    }

    fn insert_waiting(&mut self) {
        if let Some(next) = &self.next {
            next.set_all(&self.waiting, |before| self.slots.leave(before));
        }
        self.waiting.clear();
    }

    /// Returns whether the session of an event is in the mirror afterwards.
    fn is_kept(&self, event: &SessionEvent) -> bool {
        let is_shown = || self.leases.is_empty() || event.lease.is_some_and(|lease| self.leases.contains(&lease));
        !matches!(event.change, SessionChange::Destroyed(_)) && is_shown()
    }

    fn change(&mut self, event: &SessionEvent) {
        let (session, exists) = (event.session, self.is_kept(event));
        let contents = self.next.as_ref().unwrap_or(&self.shared.contents);
        let before = if exists {
            let slot = self.slots.slot_of(event.lease);
            self.slots.enter(slot);
            contents.set(session, slot)
        } else {
            contents.remove(&session)
        };
        if let Some(before) = before {
            self.slots.leave(before);
        }
        if self.next.is_none() {
            let reason = match event.change {
                SessionChange::Destroyed(reason) => Some(reason),
                _ => None,
            };
            self.changes.add(MirrorChange { session, exists, lease: event.lease.filter(|_| exists), reason });
        }
    }

    /// Replaces the contents by those of a complete snapshot, table by table, and reports the differences.
    fn replace(&mut self) {
        self.insert_waiting();
        self.waiting = Vec::new();
        let Some(next) = self.next.take() else { return };
        let contents = &self.shared.contents;
        for nth in 0..contents.tables() {
            contents.swap(nth, &next);
        }
        contents.swap_len(&next);
        if self.changes.has_readers() {
            self.report_differences(&next);
        }
        self.next = Some(next);
        self.abandon();
    }

    fn report_differences(&mut self, old: &Contents) {
        for nth in 0..old.tables() {
            let mut differences = Vec::new();
            let mut difference = |session: SessionKey, exists, slot| {
                let lease = self.shared.holders.lease(slot).filter(|_| exists);
                differences.push(MirrorChange { session, exists, lease, reason: None });
            };
            old.for_each(nth, |session, _| {
                if !self.shared.contents.contains(&session) {
                    difference(session, false, 0);
                }
            });
            self.shared.contents.for_each(nth, |session, slot| {
                if old.read(&session, |before| before) != Some(slot) {
                    difference(session, true, slot);
                }
            });
            differences.into_iter().for_each(|change| self.changes.add(change));
        }
        self.changes.send();
    }

    /// Drops contents that are not shown: an incomplete snapshot, or the old contents after a swap.
    fn abandon(&mut self) {
        self.insert_waiting();
        let Some(old) = self.next.take() else { return };
        for nth in 0..old.tables() {
            old.for_each(nth, |_, slot| self.slots.leave(slot));
        }
        self.slots.forget_idle();
    }

    /// Looks up the owners of new leases. If that fails or takes longer than [`OWNER_WAIT`], retries in the background.
    async fn learn_owners(&mut self, leases: impl Iterator<Item = LeaseId>) {
        let known = self.slots.unknown().len();
        for lease in leases {
            self.slots.slot_of(Some(lease));
        }
        let unknown = self.slots.unknown();
        if unknown.len() > known {
            let client = self.client.clone();
            match timeout(OWNER_WAIT, owners(client, unknown)).await {
                Ok(owners) => self.enter_owners(owners),
                Err(_) => self.enter_owners(Err(ClientError::Timeout { after: OWNER_WAIT })),
            }
        }
    }

    fn enter_owners(&mut self, owners: Owners) {
        match owners {
            Ok(owners) => {
                self.backoff.reset();
                owners.into_iter().for_each(|(lease, owner)| self.slots.set_owner(lease, owner));
            }
            Err(error) => {
                tracing::debug!(%error, "cannot look up the owners of leases: retrying");
                let pause = self.backoff.after_failure_within(LONGEST_PAUSE, error.retry_after());
                let (client, unknown) = (self.client.clone(), self.slots.unknown());
                self.retry = Some(Box::pin(async move {
                    sleep(pause).await;
                    self::owners(client, unknown).await
                }));
            }
        }
    }
}

/// Returns the owners of these leases, `None` for those that have ended.
async fn owners(client: Client, leases: Vec<LeaseId>) -> Owners {
    let mut owners = Vec::with_capacity(leases.len());
    for part in leases.chunks(OWNERS_A_CALL) {
        let mut query =
            LeaseQuery { lease_ids: part.to_vec(), page_size: OWNERS_A_CALL as u32, ..LeaseQuery::default() };
        owners.extend(part.iter().map(|lease| (*lease, None)));
        loop {
            let page = client.list_leases(query.clone()).await?;
            owners.extend(page.leases.into_iter().map(|status| (status.lease.id, Some(status.lease.owner.into()))));
            if page.next.is_empty() {
                break;
            }
            query.page_token = page.next;
        }
    }
    Ok(owners)
}
