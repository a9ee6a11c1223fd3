//! Live: heartbeats come by the clock, whatever the filters hide and however long a snapshot takes.

use std::{sync::Arc, time::Duration};

use proptest::{collection::vec, prelude::*};
use sessiond::{
    proto::{SubscribeRequest, subscribe_request::Start},
    service::WireEncoder,
    session::{SessionId, SessionKey},
    storage::memory::MemoryStorage,
    subject::{Filter, SessionSubject},
};
use tokio::time::Instant;

use super::{
    checker::{Broken, Promise, Started, Trace},
    faulty::Tamper,
    history::Shape,
    model::Model,
    twisted::{Paced, Twisted},
    wire::WireStream,
    world::run,
};

const WATCHED: SessionKey = SessionKey::new(0, 1);
const OTHER: SessionKey = SessionKey::new(0, 2);

/// What goes on for some time while a stream is read.
#[derive(Clone, Debug)]
struct Span {
    time: Duration,
    /// A session changes whenever so much time has passed.
    every: Duration,
    /// It is one that the stream watches.
    watched: bool,
    /// Whether snapshots can be read.
    reads: bool,
}

#[derive(Clone, Debug)]
struct Stream {
    heartbeat: Duration,
    snapshot: bool,
    filtered: bool,
}

fn millis(range: std::ops::Range<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_millis)
}

fn span() -> impl Strategy<Value = Span> {
    (millis(1..3000), millis(5..700), any::<bool>(), prop::bool::weighted(0.7))
        .prop_map(|(time, every, watched, reads)| Span { time, every, watched, reads })
}

fn stream() -> impl Strategy<Value = Stream> {
    (millis(100..2000), any::<bool>(), any::<bool>()).prop_map(|(heartbeat, snapshot, filtered)| Stream {
        heartbeat,
        snapshot,
        filtered,
    })
}

/// What a stream over the wire breaks of its promises.
async fn broken(stream: &Stream, spans: &[Span], tamper: Tamper) -> Vec<Broken> {
    let shape = Shape {
        buckets: 4,
        partitions: 1,
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
    subject.create(&[SessionKey::new(0, 3), SessionKey::new(0, 4)], None).await.unwrap();
    model.catch_up().await;
    storage.twist.let_read(spans[0].reads);

    let mut filter = Filter::default();
    if stream.filtered {
        filter.session_ids.insert(WATCHED.session_id);
        filter.session_ids.insert(SessionId(3));
    }
    let started = match stream.snapshot {
        true => Started::Snapshot,
        false => Started::Now { before: model.ends(), after: model.ends() },
    };
    let request = SubscribeRequest { start: stream.snapshot.then_some(Start::Snapshot(true)), ..Default::default() };
    let trace = Trace::new(started, filter);
    let mut wire = WireStream::open(&subject, request, stream.heartbeat, trace, tamper).await;
    for span in spans {
        storage.twist.let_read(span.reads);
        let end = Instant::now() + span.time;
        let session = if span.watched { WATCHED } else { OTHER };
        while Instant::now() < end {
            wire.read_until(end.min(Instant::now() + span.every)).await;
            if !subject.destroy(&[session], None).await.unwrap()[0] {
                subject.create(&[session], None).await.unwrap();
            }
        }
    }
    let mut broken = wire.judge_heartbeats();

    storage.twist.let_read(true);
    wire.read_until(Instant::now() + Duration::from_secs(1)).await;
    subject.close();
    wire.read_until(Instant::now() + Duration::from_secs(1)).await;
    assert!(wire.is_over, "a stream ends when its subject is closed");
    model.catch_up().await;
    wire.trace.drained = true;
    broken.extend(wire.trace.judge(&model));
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
fn live_is_broken_by_a_stream_without_heartbeats() {
    let time = Duration::from_secs(3);
    let quiet = Span { time, every: time, watched: false, reads: true };
    let busy = Span { every: Duration::from_millis(7), ..quiet };
    let stream = Stream { heartbeat: Duration::from_secs(1), snapshot: false, filtered: true };
    for spans in [[quiet.clone(), busy.clone()], [busy, quiet]] {
        let found = run(true, broken(&stream, &spans, Tamper::LoseHeartbeats));
        assert!(!found.is_empty());
        assert!(found.iter().all(|broken| broken.promise == Promise::Live), "{found:?}");
        assert_eq!(run(true, broken(&stream, &spans, Tamper::Nothing)), []);
    }
}
