//! The calls on sessions over the wire.

use sessiond::proto::{
    BatchCreateSessionsRequest, BatchDestroySessionsRequest, BatchHasSessionsRequest, CreateSessionRequest,
    DestroySessionRequest, HasSessionRequest,
};

use crate::{
    fake::soon,
    observed::{Observed, created_ids},
    server::{Running, Sessions},
};

pub(crate) async fn create(client: &Sessions, auth_key_id: i64, session_id: i64) -> bool {
    let request = CreateSessionRequest { session_id: Some(session_id), auth_key_id, lease_id: 0, ..Default::default() };
    soon(client.clone().create_session(request)).await.unwrap().into_inner().created
}

pub(crate) async fn has(client: &Sessions, auth_key_id: i64, session_id: i64) -> bool {
    let request = HasSessionRequest { session_id: Some(session_id), auth_key_id };
    soon(client.clone().has_session(request)).await.unwrap().into_inner().exists
}

pub(crate) async fn destroy(client: &Sessions, auth_key_id: i64, session_id: i64) -> bool {
    let request =
        DestroySessionRequest { session_id: Some(session_id), auth_key_id, lease_id: 0, ..Default::default() };
    soon(client.clone().destroy_session(request)).await.unwrap().into_inner().destroyed
}

pub(crate) async fn batch_create(client: &Sessions, session_ids: &[i64]) -> Vec<bool> {
    let request = BatchCreateSessionsRequest { session_ids: session_ids.to_vec(), ..Default::default() };
    soon(client.clone().batch_create_sessions(request)).await.unwrap().into_inner().created
}

pub(crate) async fn batch_destroy(client: &Sessions, session_ids: &[i64]) -> Vec<bool> {
    let request = BatchDestroySessionsRequest { session_ids: session_ids.to_vec(), ..Default::default() };
    soon(client.clone().batch_destroy_sessions(request)).await.unwrap().into_inner().destroyed
}

async fn batch_has(client: &Sessions, session_ids: &[i64], auth_key_ids: &[i64]) -> Vec<bool> {
    let request = BatchHasSessionsRequest { session_ids: session_ids.to_vec(), auth_key_ids: auth_key_ids.to_vec() };
    soon(client.clone().batch_has_sessions(request)).await.unwrap().into_inner().exists
}

#[tokio::test]
async fn an_answered_change_is_visible_on_every_connection() {
    let server = Running::start().await;
    // More connections than workers, so that both workers serve some.
    let clients: Vec<Sessions> = (0..4).map(|_| server.sessions()).collect();
    for round in 0..8 {
        let (writer, reader) = (&clients[round % 4], &clients[(round + 1) % 4]);
        for (auth_key, id) in [(0, 0), (0, -1), (0, i64::MIN), (0, i64::MAX), (-1, 0), (i64::MIN, -1), (i64::MAX, 0)] {
            assert!(!has(reader, auth_key, id).await);
            assert!(create(writer, auth_key, id).await);
            assert!(has(reader, auth_key, id).await);
            assert!(!create(reader, auth_key, id).await, "the session exists already");
        }
        for (auth_key, id) in [(0, 0), (0, -1), (0, i64::MIN), (0, i64::MAX), (-1, 0), (i64::MIN, -1), (i64::MAX, 0)] {
            assert!(destroy(writer, auth_key, id).await);
            assert!(!has(reader, auth_key, id).await);
            assert!(!destroy(reader, auth_key, id).await, "the session is already destroyed");
        }
    }
    assert_eq!(server.subject.session_count().await.unwrap(), 0);
}

#[tokio::test]
async fn a_batch_is_answered_in_order_and_duplicates_count_once() {
    let server = Running::start().await;
    let client = server.sessions();
    assert_eq!(batch_create(&client, &[]).await, [] as [bool; 0]);
    assert!(create(&client, 0, 2).await);
    let mut observed = Observed::now(&client).await;
    assert_eq!(batch_create(&client, &[5, 5, 2, -6, 5]).await, [true, false, false, true, false]);
    assert_eq!(created_ids(&observed.events(2).await), [5, -6]);
    assert_eq!(batch_has(&client, &[5, 7, 2, 5], &[]).await, [true, false, true, true]);
    assert_eq!(batch_has(&client, &[5, 5, 2], &[0, 1, 0]).await, [true, false, true]);
    assert_eq!(batch_destroy(&client, &[2, 2, 7, 5]).await, [true, false, false, true]);
    let destroyed: Vec<i64> = observed.events(2).await.iter().map(|event| event.session_id).collect();
    assert_eq!(destroyed, [2, 5]);
    let request = BatchCreateSessionsRequest {
        session_ids: vec![1, 1],
        auth_key_ids: vec![8, 9],
        lease_id: 0,
        ..Default::default()
    };
    assert_eq!(client.clone().batch_create_sessions(request).await.unwrap().into_inner().created, [true, true]);
    assert!(has(&client, 9, 1).await && !has(&client, 0, 1).await);
    let request = BatchDestroySessionsRequest {
        session_ids: vec![1, 1],
        auth_key_ids: vec![9, 0],
        lease_id: 0,
        ..Default::default()
    };
    assert_eq!(client.clone().batch_destroy_sessions(request).await.unwrap().into_inner().destroyed, [true, false]);
}

#[tokio::test]
async fn the_largest_batch_succeeds_and_its_events_keep_its_order() {
    let server = Running::start().await;
    let (writer, reader) = (server.sessions(), server.sessions());
    let mut observed = Observed::now(&reader).await;
    // In an order that is not sorted.
    let ids: Vec<i64> = (0..65_536i64).map(|n| n * 40_503 % 65_536 - 1000).collect();
    let auth_key_ids = vec![0; ids.len()];
    let request =
        BatchCreateSessionsRequest { session_ids: ids.clone(), auth_key_ids, lease_id: 0, ..Default::default() };
    let created = soon(writer.clone().batch_create_sessions(request)).await.unwrap().into_inner().created;
    assert!(created.len() == ids.len() && created.iter().all(|created| *created));
    let (events, messages) = observed.events_in(ids.len()).await;
    assert!(created_ids(&events) == ids);
    assert!(messages < 1000, "{messages} messages");
    assert!(batch_has(&reader, &ids, &[]).await.iter().all(|exists| *exists));
    assert!(batch_destroy(&writer, &ids).await.iter().all(|destroyed| *destroyed));
    assert_eq!(server.subject.session_count().await.unwrap(), 0);
}

#[tokio::test]
async fn of_concurrent_creates_of_a_session_exactly_one_succeeds() {
    let server = Running::start().await;
    let watcher = server.sessions();
    let mut observed = Observed::now(&watcher).await;
    let ids: Vec<i64> = (0..500).collect();
    let mut writers = tokio::task::JoinSet::new();
    for n in 0..8 {
        let (client, mut ids) = (server.sessions(), ids.clone());
        ids.rotate_left(n * 60);
        writers.spawn(async move {
            let mut created = 0;
            for part in ids.chunks(50) {
                created += batch_create(&client, part).await.iter().filter(|created| **created).count();
            }
            created
        });
    }
    assert_eq!(writers.join_all().await.iter().sum::<usize>(), ids.len());
    let mut seen = created_ids(&observed.events(ids.len()).await);
    seen.sort_unstable();
    assert_eq!(seen, ids);
}
