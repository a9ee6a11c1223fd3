//! A machine that runs out of something, a process that is held up, and peers that are too many or gone.

use std::time::Duration;

use bytes::Bytes;
use sessiond::proto::SubscribeRequest;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};
use tonic::Code;

use crate::{
    fake::soon,
    hostile::Target,
    leases::grant,
    program::Program,
    raw::{Raw, SERVICE, framed, grpc},
    sessions::{create, has},
};

/// How many connections come at once: as many as this process may open with the default limits of a system.
const FLOOD: usize = 400;

async fn connect(target: &Target) -> TcpStream {
    soon(TcpStream::connect(target.program.addr)).await.unwrap()
}

#[tokio::test]
async fn a_peer_that_vanished_is_let_go() {
    let target = Target::start(&["--keepalive-interval", "300ms", "--keepalive-timeout", "300ms"]).await;
    let mut half_open = Vec::new();
    for _ in 0..10 {
        let mut raw = Raw::connect(target.program.addr).await;
        raw.hold(grpc(&format!("{SERVICE}/Subscribe")), framed(&SubscribeRequest::default())).await;
        // Neither end is told: it answers no ping.
        raw.hang();
        half_open.push(raw);
    }
    target.is_as_before().await;
    drop(half_open);
}

#[tokio::test]
async fn a_flood_of_connections_holds_up_nobody() {
    let target = Target::start(&["--handshake-timeout", "1s"]).await;
    let client = target.program.sessions();
    let mut flood = Vec::new();
    for _ in 0..FLOOD {
        flood.push(connect(&target).await);
    }
    for _ in 0..FLOOD {
        drop(connect(&target).await);
    }
    assert!(has(&client, 0, 0).await);
    assert!(has(&target.program.sessions(), 0, 0).await);
    drop(client);
    // They are let go though they stay.
    target.is_as_before().await;
    drop(flood);
}

#[tokio::test]
async fn without_descriptors_connections_wait_and_those_that_are_there_are_served() {
    let program = Program::start_limited("-n 64", &["--workers", "2", "--handshake-timeout", "3s"]).await;
    let target = Target::of(program).await;
    let client = target.program.sessions();
    assert!(has(&client, 0, 0).await);
    let mut flood = Vec::new();
    for _ in 0..100 {
        flood.push(connect(&target).await);
    }
    target.program.logs("cannot accept a connection").await;
    assert!(has(&client, 0, 0).await);
    drop((flood, client));
    // It does not say so for each of the connections, nor all the time.
    assert!(target.program.log().lines().count() < 100);
    target.is_as_before().await;
}

#[tokio::test]
async fn within_a_limit_of_memory_everything_has_its_bound() {
    let bounds = [
        ["--workers", "2"],
        ["--max-pending-bytes", "50000000"],
        ["--max-sessions", "1000000"],
        ["--retain-bytes", "20000000"],
    ];
    let mut target = Target::of(Program::start_limited("-v 2000000", &bounds.concat()).await).await;
    // Sessions until there is room for no more.
    let mut client = target.program.sessions();
    let mut refused = None;
    for part in 0..20 {
        let session_ids = (part * 60_000 + 1000..(part + 1) * 60_000 + 1000).collect();
        let request = sessiond::proto::BatchCreateSessionsRequest { session_ids, ..Default::default() };
        refused = client.batch_create_sessions(request).await.err();
        if refused.is_some() {
            break;
        }
    }
    assert_eq!(refused.expect("a bound").code(), Code::ResourceExhausted);
    let session_ids = (1000..50_000).collect();
    let request = sessiond::proto::BatchDestroySessionsRequest { session_ids, ..Default::default() };
    client.batch_destroy_sessions(request).await.unwrap();
    drop(client);
    assert!(requests_that_all_but_end(&target).await > 0);
    // What that took once, and is kept for the next time, is all that it takes.
    target.resident = target.program.metric("process_resident_memory_bytes").await;
    for _ in 0..2 {
        assert!(requests_that_all_but_end(&target).await > 0);
    }
    target.is_as_before().await;
}

/// Sends a hundred requests of four megabytes, all but their ends. Gives how many were refused.
async fn requests_that_all_but_end(target: &Target) -> usize {
    let mut raws = Vec::new();
    let mut streams = Vec::new();
    let almost = Bytes::from([&(4_000_000u32).to_be_bytes()[..], &[0; 3_900_000]].concat());
    for _ in 0..10 {
        let mut raw = Raw::connect(target.program.addr).await;
        for _ in 0..10 {
            let (response, mut body) = raw.open(grpc(&format!("{SERVICE}/BatchHasSessions"))).await;
            body.send_data(Bytes::from_static(&[0]), false).unwrap();
            body.send_data(almost.clone(), false).unwrap();
            streams.push((response, body));
        }
        raws.push(raw);
    }
    let mut refused = 0;
    for (response, _) in &mut streams {
        if let Ok(Ok(answer)) = timeout(Duration::from_millis(50), response).await {
            assert_eq!(answer.headers()["grpc-status"], "8", "RESOURCE_EXHAUSTED");
            refused += 1;
        }
    }
    assert!(has(&target.program.sessions(), 0, 0).await);
    refused
}

#[tokio::test]
async fn a_server_that_was_held_up_ends_no_lease_for_it() {
    let target = Target::start(&[]).await;
    let client = target.program.sessions();
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", target.program.addr)).unwrap();
    let leases = crate::server::Leases::new(channel.connect_lazy());
    let ttl = Duration::from_secs(2);
    let lease_id = grant(&leases, ttl).await;
    let request =
        sessiond::proto::CreateSessionRequest { session_id: Some(9), auth_key_id: 0, lease_id, ..Default::default() };
    assert!(client.clone().create_session(request).await.unwrap().into_inner().created);
    // The clock of the process jumps by more than the ttl.
    target.program.signal("STOP").await;
    tokio::time::sleep(ttl * 2).await;
    target.program.signal("CONT").await;
    assert!(has(&client, 0, 9).await, "whoever was to keep it alive could not");
    // And it ends as ever when nobody does.
    let ended = async {
        while has(&client, 0, 9).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(ended).await;
    drop((client, leases));
    target.is_as_before().await;
}

#[tokio::test]
async fn a_lease_that_is_kept_alive_outlives_pauses_of_the_server() {
    let target = Target::start(&[]).await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", target.program.addr)).unwrap();
    let leases = crate::server::Leases::new(channel.connect_lazy());
    let ttl = Duration::from_secs(1);
    let lease_id = grant(&leases, ttl).await;
    let keeping = tokio::spawn(async move {
        loop {
            let request = sessiond::proto::KeepLeaseAliveRequest { lease_id };
            if let Err(status) = leases.clone().keep_lease_alive(request).await {
                return status;
            }
            tokio::time::sleep(ttl / 4).await;
        }
    });
    for pause in [900, 950, 1000, 1050, 1100, 2000] {
        target.program.signal("STOP").await;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        target.program.signal("CONT").await;
        // It is kept alive again meanwhile.
        tokio::time::sleep(ttl / 2).await;
        assert!(!keeping.is_finished(), "after a pause of {pause} ms: {:?}", keeping.await);
    }
    keeping.abort();
}

#[tokio::test]
async fn who_sends_byte_by_byte_is_held_to_the_same_times() {
    let target = Target::start(&["--handshake-timeout", "500ms", "--max-connections", "2"]).await;
    let mut slow = connect(&target).await;
    let trickles = tokio::spawn(async move {
        for byte in crate::frames::PREFACE {
            if slow.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let client = target.program.sessions();
    assert!(create(&client, 0, 3).await);
    drop(client);
    target.is_as_before().await;
    soon(trickles).await.unwrap();
}
