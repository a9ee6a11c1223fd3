//! Subscribe over the wire.

use std::time::{Duration, Instant};

use sessiond::{
    proto::{
        Place, ResetReason, SessionEventType, SubscribeRequest, subscribe_request::Start, subscribe_response::Body,
    },
    server::ServerConfig,
    session::SessionKey,
    subject::SubjectOptions,
};

use crate::{
    fake::duration,
    held::Held,
    observed::{Key, Observed, after, apply, created_ids, from_snapshot, hold, keys},
    server::{Running, config},
    sessions::{batch_create, batch_destroy, create, destroy, has},
};

fn retaining(retain_events: usize) -> ServerConfig {
    config().subject(SubjectOptions::default().retain_events(retain_events))
}

#[tokio::test]
async fn a_stream_without_a_start_reports_only_later_changes() {
    let server = Running::start().await;
    let (writer, reader) = (server.sessions(), server.sessions());
    create(&writer, 0, 1).await;
    let mut observed = Observed::now(&reader).await;
    let mut of_false =
        Observed::start(&reader, SubscribeRequest { start: Some(Start::Snapshot(false)), ..Default::default() }).await;
    assert_eq!(observed.subscribed.registry_id.len(), 16);
    assert_eq!(observed.subscribed, of_false.subscribed);
    assert_eq!(observed.subscribed.heartbeat, Some(duration(Duration::from_secs(15))));
    create(&writer, 7, 2).await;
    destroy(&writer, 0, 1).await;
    for observed in [&mut observed, &mut of_false] {
        let events = observed.events(2).await;
        assert_eq!((events[0].auth_key_id, events[0].session_id), (7, 2));
        assert_eq!(events[0].r#type(), SessionEventType::Created);
        assert_eq!((events[1].auth_key_id, events[1].session_id), (0, 1));
        assert_eq!(events[1].r#type(), SessionEventType::Destroyed);
        assert_eq!(events[1].reason().as_str_name(), "DESTROY_REASON_REQUESTED");
    }
    drop((observed, of_false));
    server.observers(0).await;
}

#[tokio::test]
async fn a_snapshot_is_exact_while_sessions_change() {
    let server = Running::start().await;
    let ids: Vec<i64> = (0..30_000).collect();
    batch_create(&server.sessions(), &ids).await;
    let mut writers = tokio::task::JoinSet::new();
    for n in 0..3 {
        let writer = server.sessions();
        writers.spawn(async move {
            for round in 0..30 {
                let mine: Vec<i64> = (0..200).map(|m| (m * 149 + round * 31) * 3 + n).collect();
                batch_destroy(&writer, &mine).await;
                batch_create(&writer, &mine[..150]).await;
            }
        });
    }
    let mut readers = Vec::new();
    for _ in 0..4 {
        let mut observed = Observed::snapshot(&server.sessions()).await;
        let held = observed.synced().await;
        readers.push((observed, held));
    }
    writers.join_all().await;
    // An observer that has received this last event has received all earlier ones.
    assert!(create(&server.sessions(), 9, 9).await);
    let exact = Observed::snapshot(&server.sessions()).await.synced().await;
    for (mut observed, mut held) in readers {
        while !held.contains_key(&SessionKey::new(9, 9)) {
            if let Body::Events(body) = observed.next().await {
                apply(&mut held, &body.events);
            }
        }
        assert!(held == exact);
    }
}

#[tokio::test]
async fn a_stream_resumes_exactly_after_its_cursor() {
    let server = Running::start().await;
    let (writer, reader) = (server.sessions(), server.sessions());
    let mut observed = Observed::now(&reader).await;
    let mut places = vec![observed.cursor.clone()];
    for id in 0..20 {
        create(&writer, 0, id).await;
        assert_eq!(created_ids(&observed.events(1).await), [id]);
        places.push(observed.cursor.clone());
    }
    drop(observed);
    for (place, cursor) in (0..).zip(&places) {
        let mut resumed = Observed::after(&server.sessions(), cursor).await;
        assert_eq!(resumed.cursor, *cursor, "subscribed repeats the cursor");
        let rest: Vec<i64> = (place..20).collect();
        assert_eq!(created_ids(&resumed.events(rest.len()).await), rest);
    }
    // The cursor before a snapshot, and the one at its end.
    let mut observed = Observed::snapshot(&reader).await;
    let before = observed.cursor.clone();
    assert_eq!(observed.synced().await.len(), 20);
    assert_eq!(Observed::after(&reader, &before).await.synced().await.len(), 20);
    create(&writer, 0, 20).await;
    let mut resumed = Observed::after(&reader, &observed.cursor).await;
    assert_eq!(created_ids(&resumed.events(1).await), [20]);
}

#[tokio::test]
async fn an_observer_that_often_reconnects_gets_new_cursors_although_its_filter_hides_everything() {
    let server = Running::with(retaining(1000)).await;
    let client = server.sessions();
    for (session_ids, types) in [(vec![-1], vec![]), (vec![], vec![SessionEventType::Destroyed])] {
        let request = |start| SubscribeRequest {
            heartbeat: Some(duration(Duration::from_secs(3600))),
            start,
            ..filtered(&session_ids, &[], &types)
        };
        let mut cursor = Observed::start(&client, request(None)).await.cursor;
        for round in 0..10 {
            let first = fastrand::i64(1 << 40..) & !0xfff;
            batch_create(&client, &(first..first + 400).collect::<Vec<_>>()).await;
            let mut observed = Observed::start(&client, request(Some(Start::Cursor(cursor.clone())))).await;
            // The heartbeat comes immediately, not after an hour.
            assert!(matches!(observed.next().await, Body::Heartbeat(_)), "round {round}");
            assert_ne!(observed.cursor, cursor, "round {round}");
            cursor = observed.cursor;
        }
    }
    assert_eq!(server.subject.stats().resets.total(), 0);
}

#[tokio::test]
async fn a_stream_that_has_caught_up_sends_one_heartbeat() {
    let server = Running::start().await;
    let client = server.sessions();
    let start = Observed::now(&client).await.cursor;
    batch_create(&client, &[1, 2, 3]).await;
    let began = Instant::now();
    let mut observed = Observed::after(&client, &start).await;
    assert!(matches!(observed.next().await, Body::Events(_)));
    assert!(matches!(observed.next().await, Body::Heartbeat(_)));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    create(&client, 0, 4).await;
    assert!(matches!(observed.next().await, Body::Events(_)));
    create(&client, 0, 5).await;
    assert!(matches!(observed.next().await, Body::Events(_)), "there is only one heartbeat, after catching up");
}

#[tokio::test]
async fn expired_and_foreign_cursors_lead_to_a_reset_and_a_snapshot() {
    let server = Running::with(retaining(100)).await;
    let other = Running::start().await;
    let client = server.sessions();
    let mine = Observed::now(&client).await;
    let (old, registry_id) = (mine.cursor, mine.subscribed.registry_id);
    let foreign = Observed::now(&other.sessions()).await.cursor;
    batch_create(&client, &(0..20_000).collect::<Vec<_>>()).await;
    // The second stream starts after one more destroy and create. The positions in its cursor are another registry's.
    let cases = [(old, ResetReason::CursorExpired, 0), (foreign, ResetReason::CursorForeign, 20_002)];
    for (cursor, reason, position) in cases {
        let request = SubscribeRequest { placements: true, ..after(&cursor) };
        let mut observed = Observed::start(&client, request).await;
        assert_eq!(observed.cursor, cursor, "subscribed repeats the cursor until the snapshot starts");
        assert_eq!(observed.subscribed.places, [Place { partition: 0, position }]);
        assert_eq!(observed.subscribed.registry_id, registry_id);
        match observed.next().await {
            Body::Reset(reset) => assert_eq!(reset.reason(), reason),
            other => panic!("expected a reset, got {other:?}"),
        }
        assert!(observed.cursor.is_empty());
        assert_eq!(observed.synced().await.len(), 20_000);
        destroy(&client, 0, 7).await;
        assert_eq!(observed.events(1).await[0].session_id, 7);
        create(&client, 0, 7).await;
    }
}

#[tokio::test]
async fn an_observer_that_falls_behind_gets_a_lagged_reset() {
    let server = Running::with(retaining(1000)).await;
    let (writer, reader) = (server.sessions(), server.sessions());
    let mut observed = Observed::now(&reader).await;
    // Far more unread events than the flow-control windows of a connection hold.
    for part in 0..4 {
        batch_create(&writer, &(part * 50_000..(part + 1) * 50_000).collect::<Vec<_>>()).await;
    }
    create(&writer, 1, 1).await;
    let (mut held, mut resets, mut is_synced) = (Held::new(), 0, true);
    while !is_synced || !held.contains_key(&SessionKey::new(1, 1)) {
        match observed.next().await {
            Body::Events(body) => apply(&mut held, &body.events),
            Body::Reset(reset) => {
                assert_eq!(reset.reason(), ResetReason::Lagged);
                resets += 1;
                is_synced = false;
                held.clear();
            }
            Body::Snapshot(body) => hold(&mut held, &body.sessions),
            Body::Synced(body) => {
                assert_eq!(body.session_count, held.len() as u64);
                is_synced = true;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(held.len(), 200_001);
    assert!(resets > 0);
    let counted = server.subject.stats().resets;
    assert_eq!((counted.lagged, counted.total()), (resets, resets));
}

fn filtered(session_ids: &[i64], auth_key_ids: &[i64], types: &[SessionEventType]) -> SubscribeRequest {
    SubscribeRequest {
        session_ids: session_ids.to_vec(),
        auth_key_ids: auth_key_ids.to_vec(),
        types: types.iter().map(|r#type| i32::from(*r#type)).collect(),
        ..from_snapshot()
    }
}

#[tokio::test]
async fn a_session_must_match_every_filter() {
    use SessionEventType::{Created, Destroyed};
    let server = Running::start().await;
    let writer = server.sessions();
    for (auth_key, id) in [(0, 1), (0, 2), (5, 1), (5, 2), (-6, 1)] {
        create(&writer, auth_key, id).await;
    }
    let table: [(SubscribeRequest, &[Key], &[Key]); 7] = [
        (filtered(&[1], &[], &[]), &[(-6, 1), (0, 1), (5, 1)], &[(5, 1), (9, 1)]),
        (filtered(&[], &[5], &[]), &[(5, 1), (5, 2)], &[(5, 1), (5, 3)]),
        (filtered(&[1, 3], &[5, 9], &[]), &[(5, 1)], &[(5, 1), (5, 3), (9, 1)]),
        (filtered(&[1], &[0], &[]), &[(0, 1)], &[]),
        (filtered(&[1], &[], &[Created]), &[(-6, 1), (0, 1), (5, 1)], &[(9, 1)]),
        (filtered(&[], &[5], &[Destroyed]), &[(5, 1), (5, 2)], &[(5, 1)]),
        (filtered(&[], &[9, 5], &[Created, Destroyed, Created]), &[(5, 1), (5, 2)], &[(5, 1), (5, 3), (9, 1), (9, 2)]),
    ];
    let mut streams = Vec::new();
    for (request, held, changes) in table {
        let mut observed = Observed::start(&server.sessions(), request).await;
        assert!(keys(&observed.synced().await).iter().eq(held));
        streams.push((observed, changes));
    }
    destroy(&writer, 5, 1).await;
    create(&writer, 5, 3).await;
    create(&writer, 9, 1).await;
    create(&writer, 9, 2).await;
    // Each stream receives exactly its own changes, in order.
    for (mut observed, changes) in streams {
        let mut seen: Vec<Key> = Vec::new();
        while seen.len() < changes.len() {
            let events = observed.more_events().await;
            seen.extend(events.iter().map(|event| (event.auth_key_id, event.session_id)));
        }
        assert_eq!(seen, changes);
    }
}

#[tokio::test]
async fn heartbeats_are_sent_and_carry_a_new_cursor_although_filters_hide_every_event() {
    let server = Running::start().await;
    let (writer, reader) = (server.sessions(), server.sessions());
    let interval = Duration::from_millis(100);
    for by_id in [true, false] {
        let (session_ids, types) = if by_id { (vec![-1], vec![]) } else { (vec![], vec![2]) };
        let request =
            SubscribeRequest { session_ids, types, heartbeat: Some(duration(interval)), ..Default::default() };
        let began = Instant::now();
        let mut observed = Observed::start(&reader, request).await;
        assert_eq!(observed.subscribed.heartbeat, Some(duration(interval)));
        for count in 1..=5 {
            // The filter hides these changes, which are more frequent than the heartbeat.
            create(&writer, count, i64::from(by_id)).await;
            match observed.next().await {
                Body::Heartbeat(_) => assert!(began.elapsed() >= interval * count as u32, "{:?}", began.elapsed()),
                other => panic!("expected a heartbeat, got {other:?}"),
            }
        }
        // A stream that resumes without the filter does not see what was hidden before the heartbeat.
        create(&writer, 0, i64::from(by_id)).await;
        let mut resumed = Observed::after(&reader, &observed.cursor).await;
        let event = resumed.events(1).await[0];
        assert_eq!((event.auth_key_id, event.session_id), (0, i64::from(by_id)));
    }
}

#[tokio::test]
async fn the_shortest_and_longest_heartbeat_are_accepted() {
    let server = Running::start().await;
    let client = server.sessions();
    for heartbeat in [Duration::from_millis(100), Duration::from_secs(3600)] {
        let request = SubscribeRequest { heartbeat: Some(duration(heartbeat)), ..Default::default() };
        let observed = Observed::start(&client, request).await;
        assert_eq!(observed.subscribed.heartbeat, Some(duration(heartbeat)));
    }
}

#[tokio::test]
async fn changes_that_are_ready_share_a_message() {
    let server = Running::start().await;
    let (writer, reader) = (server.sessions(), server.sessions());
    let mut everything = Observed::now(&reader).await;
    let auth_key_zero = SubscribeRequest { auth_key_ids: vec![0], ..Default::default() };
    let mut filtered = Observed::start(&reader, auth_key_zero).await;
    let ids: Vec<i64> = (0..6000).collect();
    batch_create(&writer, &ids).await;
    for observed in [&mut everything, &mut filtered] {
        let (events, messages) = observed.events_in(ids.len()).await;
        assert_eq!(created_ids(&events), ids);
        assert!(messages <= 600, "{messages} messages for {} events", ids.len());
    }
    assert!(has(&reader, 0, 5999).await);
    let mut resumed = Observed::start(&reader, after(&everything.cursor)).await;
    destroy(&writer, 0, 0).await;
    assert_eq!(resumed.events(1).await[0].session_id, 0);
}
