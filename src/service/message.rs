//! The length-prefixed messages of gRPC over HTTP/2
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).

use std::{
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::FutureExt as _;
use http_body::Body;
use http_body_util::BodyExt;
use prost::Message;

use super::error::ServiceError;

/// A byte that tells of compression, and four that tell the length.
const PREFIX: usize = 5;

/// What a call takes while it waits for the rest of its request, besides the bytes of that.
const WAITING_CALL: usize = 1 << 10;

/// What requests may take.
#[derive(Debug)]
pub(super) struct Limits {
    max_message_bytes: usize,
    max_pending_bytes: usize,
    /// What is held for requests that have not come whole.
    pending: AtomicUsize,
}

impl Limits {
    pub(super) fn new(max_message_bytes: usize, max_pending_bytes: usize) -> Self {
        Self { max_message_bytes, max_pending_bytes, pending: AtomicUsize::new(0) }
    }
}

/// The memory of a request that waits for its rest; free again when this is dropped.
struct Held<'a> {
    limits: &'a Limits,
    bytes: usize,
}

impl Held<'_> {
    fn grow_to(&mut self, bytes: usize) -> Result<(), ServiceError> {
        let more = bytes - self.bytes;
        self.bytes = bytes;
        if self.limits.pending.fetch_add(more, Ordering::Relaxed) + more > self.limits.max_pending_bytes {
            return Err(ServiceError::TooManyPendingBytes { limit: self.limits.max_pending_bytes });
        }
        Ok(())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Most requests never waited, and all threads share the count.
        if self.bytes > 0 {
            self.limits.pending.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// A message with its prefix.
pub(super) fn encode(message: &impl Message) -> Bytes {
    let mut bytes = begin(message.encoded_len());
    message.encode_raw(&mut bytes);
    bytes.freeze()
}

/// The prefix of a message of `len` bytes, with room for it.
pub(super) fn begin(len: usize) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(PREFIX + len);
    bytes.put_u8(0);
    bytes.put_u32(len as u32);
    bytes
}

/// Reads the one message of a request, within the bounds of its length and of the memory of all.
pub(super) async fn read<M, B>(body: B, limits: &Limits) -> Result<M, ServiceError>
where
    M: Message + Default,
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let limit = limits.max_message_bytes;
    let mut body = pin!(body);
    let mut bytes = Bytes::new();
    let mut held = Held { limits, bytes: 0 };
    loop {
        // What has come whole needs no wait, and is not counted. Nearly always the first frame is all, and nothing is
        // copied.
        let frame = match body.as_mut().frame().now_or_never() {
            Some(frame) => frame,
            None => {
                held.grow_to(WAITING_CALL + bytes.len())?;
                body.as_mut().frame().await
            }
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| ServiceError::MalformedRequest(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        bytes = if bytes.is_empty() {
            data
        } else {
            let mut joined = bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
            joined.extend_from_slice(&data);
            joined.freeze()
        };
        check_prefix(&bytes, limit)?;
        if body.is_end_stream() {
            break;
        }
    }
    let len = check_prefix(&bytes, limit)?;
    if len.is_none_or(|len| bytes.len() < PREFIX + len) {
        return Err(ServiceError::MalformedRequest("it ends too soon".to_owned()));
    }
    bytes.advance(PREFIX);
    M::decode(bytes).map_err(|error| ServiceError::MalformedRequest(error.to_string()))
}

/// Checks what has come so far against the prefix of its message, and gives the message's length once it is known.
fn check_prefix(bytes: &Bytes, limit: usize) -> Result<Option<usize>, ServiceError> {
    let Some(mut prefix) = bytes.get(..PREFIX) else { return Ok(None) };
    if prefix.get_u8() != 0 {
        return Err(ServiceError::Compressed);
    }
    let len = prefix.get_u32() as usize;
    if len > limit {
        return Err(ServiceError::RequestTooLarge { limit });
    }
    if bytes.len() > PREFIX + len {
        return Err(ServiceError::MalformedRequest("more than one message came".to_owned()));
    }
    Ok(Some(len))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;
    use crate::proto::HasSessionRequest;

    async fn read_parts(parts: &[&[u8]]) -> Result<HasSessionRequest, ServiceError> {
        let frames = parts.iter().map(|part| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(part))));
        read(StreamBody::new(futures_util::stream::iter(frames.collect::<Vec<_>>())), &Limits::new(64, 64)).await
    }

    #[tokio::test]
    async fn a_message_is_read_however_it_is_cut_into_frames() {
        let request = HasSessionRequest { session_id: Some(-7), auth_key_id: 9 };
        let bytes = encode(&request);
        assert_eq!(read_parts(&[&bytes]).await.unwrap(), request);
        for cut in 0..bytes.len() {
            assert_eq!(read_parts(&[&bytes[..cut], &bytes[cut..]]).await.unwrap(), request, "cut at {cut}");
            assert!(matches!(read_parts(&[&bytes[..cut]]).await, Err(ServiceError::MalformedRequest(_))));
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read_parts(&single).await.unwrap(), request);
    }

    #[tokio::test]
    async fn anything_else_is_refused() {
        let bytes = encode(&HasSessionRequest { session_id: Some(1), auth_key_id: 2 });
        let twice = [&bytes[..], &bytes].concat();
        assert!(matches!(read_parts(&[&twice]).await, Err(ServiceError::MalformedRequest(_))));
        assert!(matches!(read_parts(&[&[0, 0, 0, 0, 2, 0xff, 0xff]]).await, Err(ServiceError::MalformedRequest(_))));
        assert!(matches!(read_parts(&[&[1, 0, 0, 0, 0]]).await, Err(ServiceError::Compressed)));
        assert!(matches!(read_parts(&[&[0, 0, 0, 0, 65]]).await, Err(ServiceError::RequestTooLarge { limit: 64 })));
        assert!(matches!(read_parts(&[&[0, 255, 255, 255, 255]]).await, Err(ServiceError::RequestTooLarge { .. })));
    }

    #[tokio::test]
    async fn requests_that_have_not_come_whole_share_a_bound() {
        let limits = Limits::new(1 << 20, 10_000);
        let part = |len| Frame::data(Bytes::from([&[0, 0, 1, 0, 0][..], &vec![0; len - PREFIX]].concat()));
        let read_half = |len: usize| {
            let first = futures_util::stream::iter([Ok::<_, Infallible>(part(len))]);
            let body = futures_util::StreamExt::chain(first, futures_util::stream::pending());
            read::<HasSessionRequest, _>(StreamBody::new(body), &limits)
        };
        let mut held = Box::pin(read_half(6000));
        assert!(futures_util::FutureExt::now_or_never(held.as_mut()).is_none());
        let refused = futures_util::FutureExt::now_or_never(read_half(5000));
        assert!(matches!(refused, Some(Err(ServiceError::TooManyPendingBytes { limit: 10_000 }))));
        let mut small = Box::pin(read_half(1500));
        assert!(futures_util::FutureExt::now_or_never(small.as_mut()).is_none());
        let refused = futures_util::FutureExt::now_or_never(read_half(PREFIX));
        assert!(matches!(refused, Some(Err(ServiceError::TooManyPendingBytes { .. }))), "what is small is counted too");
        let whole = read_parts(&[&encode(&HasSessionRequest { session_id: Some(1), auth_key_id: 0 })]).await;
        assert!(whole.is_ok(), "what has come whole takes no part in it");
        drop((held, small));
        assert!(futures_util::FutureExt::now_or_never(read_half(5000)).is_none(), "what was held is free again");
    }
}
