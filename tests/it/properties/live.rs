//! Live: heartbeats are driven by a timer, whatever the filters hide and however long a snapshot takes.

use std::{sync::Arc, time::Duration};

use proptest::{collection::vec, prelude::*, sample::select};
use sessiond::{
    proto::subscribe_request::Start,
    service::WireEncoder,
    session::{LeaseId, SessionId, SessionKey},
    storage::{Lookup, memory::MemoryStorage},
    subject::{Filter, SessionSubject},
};
use tokio::time::Instant;

use super::{
    checker::{Broken, Promise, Started, Trace},
    faulty::Tamper,
    history::Shape,
    model::Model,
    paced::Paced,
    wire::WireStream,
    world::run,
};
use crate::twisted::Twisted;

const WATCHED: SessionKey = SessionKey::new(0, 1);
const OTHER: SessionKey = SessionKey::new(0, 2);

/// No lease expires within this time.
const LONG: Duration = Duration::from_secs(3600);

/// What happens for some time while a stream is read.
#[derive(Clone, Debug)]
struct Span {
    time: Duration,
    /// How often a session changes.
    every: Duration,
    /// Whether the stream watches that session.
    watched: bool,
    /// Whether snapshots can be read.
    reads: bool,
    /// Whether the stream is cut off and resumed before this span.
    resumes: bool,
}

#[derive(Clone, Debug)]
struct Stream {
    heartbeat: Duration,
    snapshot: bool,
    watches: Watches,
}

#[derive(Clone, Copy, Debug)]
enum Watches {
    All,
    Session,
    Placements,
    Lease,
}

impl Watches {
    fn filter(self, lease: LeaseId) -> Filter {
        let mut filter = Filter::default().placements(matches!(self, Self::Placements | Self::Lease));
        match self {
            Self::Session => filter.session_ids.extend([WATCHED.session_id, SessionId(3)]),
            Self::Lease => drop(filter.lease_ids.insert(lease)),
            Self::All | Self::Placements => {}
        }
        filter
    }
}

fn millis(range: std::ops::Range<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_millis)
}

fn span() -> impl Strategy<Value = Span> {
    (millis(1..3000), millis(5..700), any::<bool>(), prop::bool::weighted(0.7), prop::bool::weighted(0.3))
        .prop_map(|(time, every, watched, reads, resumes)| Span { time, every, watched, reads, resumes })
}

fn stream() -> impl Strategy<Value = Stream> {
    let watches = select(vec![Watches::All, Watches::Session, Watches::Placements, Watches::Lease]);
    (millis(100..2000), any::<bool>(), watches).prop_map(|(heartbeat, snapshot, watches)| Stream {
        heartbeat,
        snapshot,
        watches,
    })
}

/// Returns the promises that a stream over the wire breaks.
async fn broken(stream: &Stream, spans: &[Span], tamper: Tamper) -> Vec<Broken> {
    let shape = Shape {
        buckets: 4,
        partitions: 2,
        storage_events: 4096,
        retain_events: 4096,
        retain_bytes: 1 << 20,
        replicas: 1,
    };
    let truth = Arc::new(MemoryStorage::new(shape.storage_options()));
    let mut model = Model::new(truth.clone()).await;
    let storage = Twisted::new(truth, Paced::new(true));
    let subject = SessionSubject::start(storage.clone(), shape.subject_options(), WireEncoder).await.unwrap();
    let subject = Arc::new(subject);
    let lease = subject.grant_lease(LONG, "a").await.unwrap();
    let other_lease = subject.grant_lease(LONG, "b").await.unwrap();
    subject.create(&[SessionKey::new(0, 3)], Some(lease)).await.unwrap();
    subject.create(&[SessionKey::new(0, 4)], None).await.unwrap();
    model.catch_up().await;
    storage.let_read(spans[0].reads);

    let filter = stream.watches.filter(lease);
    let started = match stream.snapshot {
        true => Started::Snapshot,
        false => Started::Now { before: model.ends(), after: model.ends() },
    };
    let start = stream.snapshot.then_some(Start::Snapshot(true));
    let trace = Trace::new(started, filter.clone());
    let mut wire = WireStream::open(&subject, start, stream.heartbeat, trace, tamper).await;
    let (mut left, mut broken) = (Vec::new(), Vec::new());
    for span in spans {
        storage.let_read(span.reads);
        let cursor = wire.trace.messages.last().and_then(|message| message.cursor.clone());
        if let Some(cursor) = cursor.filter(|_| span.resumes) {
            let started = Started::After { cursor: cursor.clone(), is_retained: true };
            let trace = Trace::new(started, filter.clone());
            let next = WireStream::open(&subject, Some(Start::Cursor(cursor)), stream.heartbeat, trace, tamper).await;
            broken.extend(wire.judge_heartbeats());
            left.push(std::mem::replace(&mut wire, next).trace);
        }
        let end = Instant::now() + span.time;
        let session = [if span.watched { WATCHED } else { OTHER }];
        while Instant::now() < end {
            wire.read_until(end.min(Instant::now() + span.every)).await;
            let Lookup { exists, lease: under, .. } = subject.lookup(&session).await.unwrap()[0];
            if !exists {
                subject.create(&session, Some(lease)).await.unwrap();
            } else if under == Some(lease) {
                subject.create(&session, Some(other_lease)).await.unwrap();
            } else {
                subject.destroy(&session, under).await.unwrap();
            }
        }
    }
    broken.extend(wire.judge_heartbeats());

    storage.let_read(true);
    wire.read_until(Instant::now() + Duration::from_secs(1)).await;
    subject.close();
    wire.read_until(Instant::now() + Duration::from_secs(1)).await;
    assert!(wire.is_over, "the stream ends when its subject is closed");
    model.catch_up().await;
    wire.trace.drained = true;
    left.push(wire.trace);
    broken.extend(left.iter().flat_map(|trace| trace.judge(&model)));
    broken
}

proptest! {
    #![proptest_config(super::config())]

    #[test]
    fn a_stream_is_never_silent_for_longer_than_its_heartbeat(stream in stream(), spans in vec(span(), 1..5)) {
        let broken = run(true, broken(&stream, &spans, Tamper::Nothing));
        prop_assert!(broken.is_empty(), "{:#?}", broken);
    }
}

#[test]
fn missing_heartbeats_break_live() {
    let time = Duration::from_secs(3);
    let quiet = Span { time, every: time, watched: false, reads: true, resumes: false };
    let busy = Span { every: Duration::from_millis(7), ..quiet };
    let stream = Stream { heartbeat: Duration::from_secs(1), snapshot: false, watches: Watches::Session };
    for spans in [[quiet.clone(), busy.clone()], [busy, quiet]] {
        let found = run(true, broken(&stream, &spans, Tamper::LoseHeartbeats));
        assert!(!found.is_empty());
        assert!(found.iter().all(|broken| broken.promise == Promise::Live), "{found:?}");
        assert_eq!(run(true, broken(&stream, &spans, Tamper::Nothing)), []);
    }
}

#[test]
fn wrong_places_on_the_wire_break_comparable() {
    let every = Duration::from_millis(300);
    let spans = [true, false].map(|resumes| Span { time: 5 * every, every, watched: true, reads: true, resumes });
    for watches in [Watches::Placements, Watches::Lease] {
        let stream = Stream { heartbeat: every / 2, snapshot: true, watches };
        assert_eq!(run(true, broken(&stream, &spans, Tamper::Nothing)), []);
        for tamper in [-1, 1].into_iter().flat_map(|by| [Tamper::ShiftPlaces(by), Tamper::ShiftLast(by)]) {
            let found = run(true, broken(&stream, &spans, tamper));
            assert!(!found.is_empty(), "{tamper:?}");
            assert!(found.iter().all(|broken| broken.promise == Promise::Comparable), "{tamper:?}: {found:?}");
        }
    }
}
