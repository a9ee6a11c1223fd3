//! Exhausted resources, paused processes, and peers that vanish or connect in large numbers.

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

/// The number of connections in a flood: as many as this process may open under a system's default limits.
const FLOOD: usize = 400;

async fn connect(target: &Target) -> TcpStream {
    soon(TcpStream::connect(target.program.addr)).await.unwrap()
}

#[tokio::test]
async fn a_connection_of_a_vanished_peer_is_closed() {
    let target = Target::start(&["--keepalive-interval", "300ms", "--keepalive-timeout", "300ms"]).await;
    let mut half_open = Vec::new();
    for _ in 0..10 {
        let mut raw = Raw::connect(target.program.addr).await;
        raw.hold(grpc(&format!("{SERVICE}/Subscribe")), framed(&SubscribeRequest::default())).await;
        // Neither end closes the connection, but this one answers no more pings.
        raw.hang();
        half_open.push(raw);
    }
    target.assert_recovered().await;
    drop(half_open);
}

#[tokio::test]
async fn a_flood_of_connections_does_not_delay_other_clients() {
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
    // The server closes these connections although their peers keep them open.
    target.assert_recovered().await;
    drop(flood);
}

#[tokio::test]
async fn when_descriptors_run_out_new_connections_wait_and_existing_ones_are_served() {
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
    // The warning is rate limited: it is not logged for each connection.
    assert!(target.program.log().lines().count() < 100);
    target.assert_recovered().await;
}

#[tokio::test]
async fn under_a_memory_limit_sessions_and_pending_requests_are_bounded() {
    let limits = [
        ["--workers", "2"],
        ["--max-pending-bytes", "50000000"],
        ["--max-sessions", "1000000"],
        ["--retain-bytes", "20000000"],
    ];
    let mut target = Target::of(Program::start_limited("-v 2000000", &limits.concat()).await).await;
    // Creates sessions until the limit is reached.
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
    assert_eq!(refused.expect("the limit is reached").code(), Code::ResourceExhausted);
    let session_ids = (1000..50_000).collect();
    let request = sessiond::proto::BatchDestroySessionsRequest { session_ids, ..Default::default() };
    client.batch_destroy_sessions(request).await.unwrap();
    drop(client);
    assert!(send_unfinished_requests(&target).await > 0);
    // The memory that the first round leaves in use is reused: further rounds take no more.
    target.resident = target.program.metric("process_resident_memory_bytes").await;
    for _ in 0..2 {
        assert!(send_unfinished_requests(&target).await > 0);
    }
    target.assert_recovered().await;
}

/// Sends a hundred requests of four megabytes without their last bytes. Returns how many were refused.
async fn send_unfinished_requests(target: &Target) -> usize {
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
async fn a_paused_server_does_not_expire_leases_for_the_pause() {
    let target = Target::start(&[]).await;
    let client = target.program.sessions();
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", target.program.addr)).unwrap();
    let leases = crate::server::Leases::new(channel.connect_lazy());
    let ttl = Duration::from_secs(2);
    let lease_id = grant(&leases, ttl).await;
    let request =
        sessiond::proto::CreateSessionRequest { session_id: Some(9), auth_key_id: 0, lease_id, ..Default::default() };
    assert!(client.clone().create_session(request).await.unwrap().into_inner().created);
    // After this pause, the clock of the process has jumped by more than the ttl.
    target.program.signal("STOP").await;
    tokio::time::sleep(ttl * 2).await;
    target.program.signal("CONT").await;
    assert!(has(&client, 0, 9).await, "the owner could not keep the lease alive during the pause");
    // Later the lease expires as usual, because nobody keeps it alive.
    let ended = async {
        while has(&client, 0, 9).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(ended).await;
    drop((client, leases));
    target.assert_recovered().await;
}

#[tokio::test]
async fn a_lease_that_is_kept_alive_survives_pauses_of_the_server() {
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
        // Time for the gateway to keep the lease alive again.
        tokio::time::sleep(ttl / 2).await;
        assert!(!keeping.is_finished(), "after a pause of {pause} ms: {:?}", keeping.await);
    }
    keeping.abort();
}

#[tokio::test]
async fn the_handshake_timeout_also_ends_peers_that_send_byte_by_byte() {
    let target = Target::start(&["--handshake-timeout", "500ms", "--max-connections", "2"]).await;
    let mut slow = connect(&target).await;
    let trickle = tokio::spawn(async move {
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
    target.assert_recovered().await;
    soon(trickle).await.unwrap();
}
