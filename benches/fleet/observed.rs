//! The bytes that an observer receives.

use std::{net::SocketAddr, time::Duration};

use sessiond::proto::SubscribeRequest;
use tokio::{runtime::Builder, time::timeout};

use super::wire::{Frame, Wire, framed};

/// The length of a frame's head in HTTP/2.
const HEAD: usize = 9;

/// Returns how many bytes an observer receives in this time, and in how many frames.
pub(crate) fn bytes(address: SocketAddr, during: Duration) -> (usize, usize) {
    Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let mut wire = Wire::connect(address, "/sessiond.v1.SessionService/Subscribe").await;
        wire.call(&framed(&SubscribeRequest::default()));
        wire.send().await;
        let (mut bytes, mut frames) = (0, 0);
        let _ = timeout(during, async {
            loop {
                if let Frame::Data(data) = wire.next().await {
                    bytes += HEAD + data.len();
                    frames += 1;
                }
            }
        })
        .await;
        (bytes, frames)
    })
}
