//! Peers that break the protocol, while the server may be killed at any moment.

use std::{net::SocketAddr, time::Duration};

use sessiond::proto::SubscribeRequest;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::{
    frames::{CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, SETTINGS, frame, headers, start},
    hostile::{noise, storm_of_resets},
    raw::{SERVICE, framed},
};

/// How long a peer keeps its connection open at most.
const STAYS: Duration = Duration::from_secs(3);

/// Connects one hostile peer after another. Returns their number.
pub(crate) async fn break_rules(addr: SocketAddr, until: Instant) -> u64 {
    let mut peers = 0;
    while Instant::now() < until {
        if let Ok(socket) = TcpStream::connect(addr).await {
            peers += 1;
            // The server may close the connection before everything is sent, or be killed.
            let _ = timeout(STAYS, misbehave(socket, &bytes())).await;
        }
        sleep(Duration::from_millis(fastrand::u64(0..100))).await;
    }
    peers
}

async fn misbehave(mut socket: TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    // Half of the peers send only part of their bytes.
    let end = if fastrand::bool() { bytes.len() } else { fastrand::usize(0..=bytes.len()) };
    socket.write_all(&bytes[..end]).await?;
    match fastrand::u32(0..8) {
        // Disconnects abruptly: unread bytes reset the connection.
        0..3 => {}
        3..5 => {
            socket.shutdown().await?;
            socket.read_to_end(&mut Vec::new()).await?;
        }
        5..7 => drop(socket.read_to_end(&mut Vec::new()).await?),
        // Neither reads nor disconnects.
        _ => sleep(STAYS).await,
    }
    Ok(())
}

/// Returns the bytes that a random kind of hostile peer sends.
fn bytes() -> Vec<u8> {
    let path = |name: &str| headers(&format!("{SERVICE}/{name}"));
    let stream = |number: u32, name: &str, flags: u8, body: &[u8]| {
        [frame(HEADERS, END_HEADERS, number, &path(name)), frame(DATA, flags, number, body)].concat()
    };
    let subscribe = framed(&SubscribeRequest::default());
    match fastrand::u32(0..9) {
        0 => noise(fastrand::u64(..), fastrand::usize(1..100_000)),
        1 => [start(), noise(fastrand::u64(..), fastrand::usize(1..100_000))].concat(),
        2 => [start(), storm_of_resets(&path("Subscribe"), &subscribe)].concat(),
        3 => {
            let flood = frame(CONTINUATION, 0, 1, &[0x40; 1000]).repeat(1000);
            [start(), frame(HEADERS, 0, 1, &headers("/x")), flood].concat()
        }
        4 => [start(), frame(PING, 0, 0, &[7; 8]).repeat(20_000)].concat(),
        5 => [start(), frame(SETTINGS, 0, 0, &[]).repeat(20_000)].concat(),
        // Fifty observers that never read.
        6 => {
            let observers = (0..50).map(|n| stream(2 * n + 1, "Subscribe", END_STREAM, &subscribe));
            [start(), observers.collect::<Vec<_>>().concat()].concat()
        }
        // A batch that never ends.
        7 => [start(), stream(1, "BatchCreateSessions", 0, &[0, 0, 0x40, 0, 0, 10])].concat(),
        _ => PREFACE[..fastrand::usize(1..PREFACE.len())].to_vec(),
    }
}
