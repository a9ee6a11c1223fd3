//! Peers that break the rules, of a server that may be gone at any moment.

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

/// How long one that leaves its connection open does.
const STAYS: Duration = Duration::from_secs(3);

/// One peer after the other; tells how many there were.
pub(crate) async fn break_rules(addr: SocketAddr, until: Instant) -> u64 {
    let mut peers = 0;
    while Instant::now() < until {
        if let Ok(socket) = TcpStream::connect(addr).await {
            peers += 1;
            // The server may have had enough before all is sent, or be killed.
            let _ = timeout(STAYS, be_one(socket, &bytes())).await;
        }
        sleep(Duration::from_millis(fastrand::u64(0..100))).await;
    }
    peers
}

async fn be_one(mut socket: TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    // Some are cut in the midst of what they say.
    let end = if fastrand::bool() { bytes.len() } else { fastrand::usize(0..=bytes.len()) };
    socket.write_all(&bytes[..end]).await?;
    match fastrand::u32(0..8) {
        // Leaves without a word: what was not read resets the connection.
        0..3 => {}
        3..5 => {
            socket.shutdown().await?;
            socket.read_to_end(&mut Vec::new()).await?;
        }
        5..7 => drop(socket.read_to_end(&mut Vec::new()).await?),
        // Neither reads nor leaves.
        _ => sleep(STAYS).await,
    }
    Ok(())
}

/// What one of them says.
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
        // Observers that are stuck, as many as a connection may have.
        6 => {
            let observers = (0..50).map(|n| stream(2 * n + 1, "Subscribe", END_STREAM, &subscribe));
            [start(), observers.collect::<Vec<_>>().concat()].concat()
        }
        // A batch that does not end.
        7 => [start(), stream(1, "BatchCreateSessions", 0, &[0, 0, 0x40, 0, 0, 10])].concat(),
        _ => PREFACE[..fastrand::usize(1..PREFACE.len())].to_vec(),
    }
}
