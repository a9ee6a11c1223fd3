//! Reads and writes the length-prefixed messages of gRPC over HTTP/2
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

/// The length of the prefix: one byte for compression and four for the length of the message.
const PREFIX: usize = 5;

/// The memory that a call takes while it waits for the rest of its request, in addition to the request's bytes.
const WAITING_CALL: usize = 1 << 10;

/// The limits on the size of requests.
#[derive(Debug)]
pub(super) struct Limits {
    max_message_bytes: usize,
    max_pending_bytes: usize,
    /// The memory that incomplete requests take now.
    pending: AtomicUsize,
}

impl Limits {
    pub(super) fn new(max_message_bytes: usize, max_pending_bytes: usize) -> Self {
        Self { max_message_bytes, max_pending_bytes, pending: AtomicUsize::new(0) }
    }
}

/// The memory of one incomplete request, counted until this is dropped.
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
        // All threads share the count, so requests that never waited do not touch it.
        if self.bytes > 0 {
            self.limits.pending.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// Encodes a message with its prefix.
pub(super) fn encode(message: &impl Message) -> Bytes {
    let mut bytes = begin(message.encoded_len());
    message.encode_raw(&mut bytes);
    bytes.freeze()
}

/// Returns the prefix of a message of `len` bytes, with capacity for the message.
pub(super) fn begin(len: usize) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(PREFIX + len);
    bytes.put_u8(0);
    bytes.put_u32(len as u32);
    bytes
}

/// Reads the message of a request, with its prefix, within the limits on its size and on the memory of all incomplete
/// requests.
pub(super) async fn read<B>(body: B, limits: &Limits) -> Result<Bytes, ServiceError>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let limit = limits.max_message_bytes;
    let mut body = pin!(body);
    let mut bytes = Bytes::new();
    let mut held = Held { limits, bytes: 0 };
    loop {
        // A request that has arrived completely does not wait, and is not counted. Nearly always, the first frame is
        // the whole request, and nothing is copied.
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
        return Err(ServiceError::MalformedRequest("it is truncated".to_owned()));
    }
    Ok(bytes)
}

/// Checks the bytes read so far against their prefix. Returns the message's length once it is known.
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
        return Err(ServiceError::MalformedRequest("it contains more than one message".to_owned()));
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

    async fn read_parts(parts: &[&[u8]]) -> Result<Bytes, ServiceError> {
        let frames = parts.iter().map(|part| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(part))));
        read(StreamBody::new(futures_util::stream::iter(frames.collect::<Vec<_>>())), &Limits::new(64, 64)).await
    }

    #[tokio::test]
    async fn a_message_may_be_split_into_any_frames() {
        let bytes = encode(&HasSessionRequest { session_id: Some(-7), auth_key_id: 9 });
        assert_eq!(read_parts(&[&bytes]).await.unwrap(), bytes);
        for cut in 0..bytes.len() {
            assert_eq!(read_parts(&[&bytes[..cut], &bytes[cut..]]).await.unwrap(), bytes, "cut at {cut}");
            assert!(matches!(read_parts(&[&bytes[..cut]]).await, Err(ServiceError::MalformedRequest(_))));
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read_parts(&single).await.unwrap(), bytes);
    }

    #[tokio::test]
    async fn invalid_requests_are_refused() {
        let bytes = encode(&HasSessionRequest { session_id: Some(1), auth_key_id: 2 });
        let twice = [&bytes[..], &bytes].concat();
        assert!(matches!(read_parts(&[&twice]).await, Err(ServiceError::MalformedRequest(_))));
        assert!(matches!(read_parts(&[&[1, 0, 0, 0, 0]]).await, Err(ServiceError::Compressed)));
        assert!(matches!(read_parts(&[&[0, 0, 0, 0, 65]]).await, Err(ServiceError::RequestTooLarge { limit: 64 })));
        assert!(matches!(read_parts(&[&[0, 255, 255, 255, 255]]).await, Err(ServiceError::RequestTooLarge { .. })));
    }

    #[tokio::test]
    async fn incomplete_requests_share_a_limit() {
        let limits = Limits::new(1 << 20, 10_000);
        let part = |len| Frame::data(Bytes::from([&[0, 0, 1, 0, 0][..], &vec![0; len - PREFIX]].concat()));
        let read_half = |len: usize| {
            let first = futures_util::stream::iter([Ok::<_, Infallible>(part(len))]);
            let body = futures_util::StreamExt::chain(first, futures_util::stream::pending());
            read(StreamBody::new(body), &limits)
        };
        let mut held = Box::pin(read_half(6000));
        assert!(futures_util::FutureExt::now_or_never(held.as_mut()).is_none());
        let refused = futures_util::FutureExt::now_or_never(read_half(5000));
        assert!(matches!(refused, Some(Err(ServiceError::TooManyPendingBytes { limit: 10_000 }))));
        let mut small = Box::pin(read_half(1500));
        assert!(futures_util::FutureExt::now_or_never(small.as_mut()).is_none());
        let refused = futures_util::FutureExt::now_or_never(read_half(PREFIX));
        assert!(matches!(refused, Some(Err(ServiceError::TooManyPendingBytes { .. }))), "small requests count too");
        let whole = read_parts(&[&encode(&HasSessionRequest { session_id: Some(1), auth_key_id: 0 })]).await;
        assert!(whole.is_ok(), "complete requests do not count");
        drop((held, small));
        assert!(futures_util::FutureExt::now_or_never(read_half(5000)).is_none(), "dropped requests free their memory");
    }
}
