//! Random histories of a registry: the changes, the observers, and what runs in between.

use std::{ops::Range, time::Duration};

use proptest::{collection::vec, prelude::*, sample::select};
use sessiond::{
    session::{AuthKeyId, LeaseId, SessionId, SessionKey},
    storage::{CreateOptions, Takeover, memory::MemoryOptions},
    subject::{ChangeFilter, Filter, SubjectOptions},
};

/// Few ids, so that several writers change the same sessions. The extremes of the range are among them.
const SESSION_IDS: [i64; 6] = [0, 1, 2, -1, i64::MIN, i64::MAX];
const AUTH_KEY_IDS: [i64; 3] = [0, 7, -7];

/// How many of the newest leases are in use. Few, so that sessions move among them.
const LEASES_IN_USE: usize = 3;

/// The configuration of a storage and of the subjects on top.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) buckets: u32,
    pub(crate) partitions: u32,
    /// How many changes the storage keeps. If they are few, a subject that does not run for long loses its place. No
    /// step makes more than that.
    pub(crate) storage_events: usize,
    pub(crate) retain_events: usize,
    pub(crate) retain_bytes: usize,
    /// How many subjects follow the storage, like a fleet of servers over one registry.
    pub(crate) replicas: usize,
}

impl Shape {
    pub(crate) fn storage_options(&self) -> MemoryOptions {
        let (buckets, partitions, retain_events) = (self.buckets, self.partitions, self.storage_events);
        MemoryOptions::default().buckets(buckets).partitions(partitions).retain_events(retain_events)
    }

    pub(crate) fn subject_options(&self) -> SubjectOptions {
        let (retain_events, retain_bytes) = (self.retain_events, self.retain_bytes);
        SubjectOptions::default().retain_events(retain_events).retain_bytes(retain_bytes)
    }
}

/// The observer that joined last.
pub(crate) const NEWEST: usize = usize::MAX;

/// One step of a history. Its numbers choose among what exists when the step is taken.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Create {
        sessions: Vec<SessionKey>,
        lease: Option<usize>,
        /// Takes sessions only from this lease.
        only_from: Option<Option<usize>>,
    },
    Destroy {
        sessions: Vec<SessionKey>,
        lease: Option<usize>,
    },
    Grant(Duration),
    KeepAlive(usize),
    /// Revokes a lease with a linger, which may be zero.
    Revoke(usize, Duration),
    /// Lets time pass.
    Pass(Duration),
    /// Lets other tasks run a few times.
    Run(usize),
    /// Lets a replica follow the log to its end.
    Settle(usize),
    /// Sets whether a replica may follow the log.
    LetFollow(usize, bool),
    /// Closes and restarts a replica. Its observers come back to any replica.
    Restart(usize),
    Join {
        replica: usize,
        from: From,
        /// Its leases are resolved by [`resolve_leases`] when the observer joins.
        filter: Filter,
    },
    Poll {
        /// An observer, or [`NEWEST`].
        who: usize,
        updates: usize,
    },
    Leave(usize),
    /// An observer leaves and resumes from its last cursor.
    Resume {
        who: usize,
        replica: usize,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum From {
    Now,
    Snapshot,
    /// Any cursor that any observer received, counted from the newest.
    Cursor(usize),
    Foreign,
}

pub(crate) fn shape() -> impl Strategy<Value = Shape> {
    let storage_events = select(vec![24, 64, 4096]);
    let retain_bytes = prop_oneof![2 => Just(1 << 20), 1 => 400..4000usize];
    (1..=16u32, select(vec![1, 3]), storage_events, 8..=64usize, retain_bytes, 1..=2usize).prop_map(
        |(buckets, partitions, storage_events, retain_events, retain_bytes, replicas)| Shape {
            buckets,
            partitions,
            storage_events,
            retain_events,
            retain_bytes,
            replicas,
        },
    )
}

pub(crate) fn steps(count: Range<usize>) -> impl Strategy<Value = Vec<Step>> {
    // Most histories begin with long leases.
    let leases = vec(Just(Step::Grant(Duration::from_secs(3600))), 0..LEASES_IN_USE);
    let one = step().prop_map(|step| vec![step]);
    let some = vec(prop_oneof![12 => one, 1 => snapshot_amid_changes()], count);
    (leases, some).prop_map(|(leases, steps)| [leases, steps.concat()].concat())
}

/// An observer that receives changes bit by bit while it reads its snapshot.
fn snapshot_amid_changes() -> impl Strategy<Value = Vec<Step>> {
    let rounds = vec((change(), 1..4usize), 1..6);
    (any::<usize>(), filter(), rounds).prop_map(|(replica, filter, rounds)| {
        let poll = |updates| Step::Poll { who: NEWEST, updates };
        let join = [Step::Join { replica, from: From::Snapshot, filter }, poll(2)];
        let round = |(change, updates)| [change, Step::Run(2), poll(updates)];
        join.into_iter().chain(rounds.into_iter().flat_map(round)).collect()
    })
}

fn step() -> impl Strategy<Value = Step> {
    // Often few, so that changes happen while an observer reads its snapshot.
    let updates = prop_oneof![Just(1), 1..6usize];
    prop_oneof![
        24 => change(),
        3 => (300..3000u64).prop_map(|ms| Step::Grant(Duration::from_millis(ms))),
        2 => any::<usize>().prop_map(Step::KeepAlive),
        2 => (any::<usize>(), linger()).prop_map(|(lease, linger)| Step::Revoke(lease, linger)),
        2 => (1..2000u64).prop_map(|ms| Step::Pass(Duration::from_millis(ms))),
        6 => (1..4usize).prop_map(Step::Run),
        4 => any::<usize>().prop_map(Step::Settle),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(replica, follows)| Step::LetFollow(replica, follows)),
        1 => any::<usize>().prop_map(Step::Restart),
        8 => (any::<usize>(), from(), filter()).prop_map(|(replica, from, filter)| Step::Join { replica, from, filter }),
        24 => (any::<usize>(), updates).prop_map(|(who, updates)| Step::Poll { who, updates }),
        2 => any::<usize>().prop_map(Step::Leave),
        6 => (any::<usize>(), any::<usize>()).prop_map(|(who, replica)| Step::Resume { who, replica }),
    ]
}

/// A change by a writer, of one session or of a batch.
pub(crate) fn change() -> impl Strategy<Value = Step> {
    let sessions = prop_oneof![vec(session(), 1), vec(session(), 2..20)];
    let lease = prop_oneof![1 => Just(None), 3 => any::<usize>().prop_map(Some)];
    let only_from = prop_oneof![1 => Just(None), 1 => prop::option::of(any::<usize>()).prop_map(Some)];
    (prop::bool::weighted(0.6), sessions, lease, only_from).prop_map(|(creates, sessions, lease, only_from)| {
        match creates {
            true => Step::Create { sessions, lease, only_from },
            false => Step::Destroy { sessions, lease },
        }
    })
}

fn linger() -> impl Strategy<Value = Duration> {
    prop_oneof![Just(0), 1..3000u64].prop_map(Duration::from_millis)
}

/// Returns one of the leases in use, if there are any.
pub(crate) fn one_of(leases: &[LeaseId], number: usize) -> Option<LeaseId> {
    let in_use = &leases[leases.len().saturating_sub(LEASES_IN_USE)..];
    in_use.get(number % in_use.len().max(1)).copied()
}

/// Returns the options for creating sessions under one of the leases.
pub(crate) fn create_options(
    leases: &[LeaseId],
    lease: Option<usize>,
    only_from: Option<Option<usize>>,
) -> CreateOptions {
    let of = |number: Option<usize>| number.and_then(|number| one_of(leases, number));
    let takeover = only_from.map_or(Takeover::Always, |from| Takeover::OnlyFrom(of(from)));
    CreateOptions::from(of(lease)).takeover(takeover)
}

/// Replaces the numbers in a filter by existing leases. If there are none, the numbers stay and match nothing.
pub(crate) fn resolve_leases(filter: &Filter, leases: &[LeaseId]) -> Filter {
    let of = |number: &LeaseId| one_of(leases, number.number() as usize).unwrap_or(*number);
    filter.clone().lease_ids(filter.lease_ids.iter().map(of))
}

pub(crate) fn from() -> impl Strategy<Value = From> {
    prop_oneof![
        3 => Just(From::Now),
        4 => Just(From::Snapshot),
        4 => (0..40usize).prop_map(From::Cursor),
        3 => (0..1000usize).prop_map(From::Cursor),
        1 => Just(From::Foreign),
    ]
}

pub(crate) fn session() -> impl Strategy<Value = SessionKey> {
    (select(&AUTH_KEY_IDS[..]), select(&SESSION_IDS[..])).prop_map(|(auth_key, id)| SessionKey::new(auth_key, id))
}

pub(crate) fn all_sessions() -> Vec<SessionKey> {
    let of = |auth_key| SESSION_IDS.iter().map(move |id| SessionKey::new(auth_key, *id));
    AUTH_KEY_IDS.into_iter().flat_map(of).collect()
}

pub(crate) fn filter() -> impl Strategy<Value = Filter> {
    let session_ids = vec(select(&SESSION_IDS[..]).prop_map(SessionId), 0..4);
    let auth_key_ids = vec(select(&AUTH_KEY_IDS[..]).prop_map(AuthKeyId), 0..3);
    let changes = prop_oneof![
        4 => Just(ChangeFilter::ALL),
        1 => Just(ChangeFilter::CREATED),
        1 => Just(ChangeFilter::DESTROYED),
        1 => Just(ChangeFilter::ALL.created(false).destroyed(false)),
        1 => Just(ChangeFilter::ALL.moved(false)),
    ];
    let narrow = (session_ids, auth_key_ids, changes).prop_map(|(session_ids, auth_key_ids, changes)| {
        Filter::default().session_ids(session_ids).auth_key_ids(auth_key_ids).changes(changes)
    });
    let by_session = prop_oneof![Just(Filter::default()), narrow];
    // Numbers, which [`resolve_leases`] replaces by leases later.
    let lease_ids = vec((1..100u64).prop_map(|number| LeaseId::from_number(number).unwrap()), 1..3);
    let lease_ids = prop_oneof![1 => Just(Vec::new()), 2 => lease_ids];
    let placed =
        (by_session.clone(), lease_ids).prop_map(|(filter, lease_ids)| filter.placements(true).lease_ids(lease_ids));
    prop_oneof![by_session, placed]
}
