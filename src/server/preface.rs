//! Waits for a peer to speak.

use std::time::Duration;

use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

/// What every client of HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a peer may take for it, over the slowest of networks.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait for the rest of a preface that came in parts, which hardly any does.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until a peer has sent its preface, or what is none. False when it leaves, or says nothing for too long.
///
/// hyper waits for a preface for ever, and does not let go of a connection without one when it is told to shut down.
pub(super) async fn has_come(stream: &TcpStream) -> bool {
    let comes = async {
        let mut said = [0; PREFACE.len()];
        loop {
            match stream.peek(&mut said).await {
                Ok(0) | Err(_) => return false,
                Ok(count) if count < PREFACE.len() && PREFACE.starts_with(&said[..count]) => sleep(PAUSE).await,
                // What is no preface is refused by hyper.
                Ok(_) => return true,
            }
        }
    };
    timeout(TIMEOUT, comes).await.unwrap_or(false)
}
