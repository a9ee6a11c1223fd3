//! Extracts gRPC's length-prefixed messages from DATA frames.

use bytes::{Buf as _, Bytes, BytesMut};

use super::fields::Malformed;

/// One byte for compression, and four for the length.
pub(super) const PREFIX: usize = 5;

/// Longer than any message that sessiond sends.
const MAX_MESSAGE: usize = 64 << 20;

/// The bytes that have arrived but have not been read yet.
#[derive(Debug, Default)]
pub(super) struct Frames(Bytes);

impl Frames {
    /// Adds a frame. Copies nothing if the frame starts with a message, as nearly all do.
    pub(super) fn push(&mut self, data: Bytes) {
        self.0 = if self.0.is_empty() {
            data
        } else {
            let mut joined = std::mem::take(&mut self.0).try_into_mut().unwrap_or_else(BytesMut::from);
            joined.extend_from_slice(&data);
            joined.freeze()
        };
    }

    /// Returns the next message once it has arrived completely.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, Malformed> {
        let Some(mut prefix) = self.0.get(..PREFIX) else { return Ok(None) };
        let compressed = prefix.get_u8() != 0;
        let len = prefix.get_u32() as usize;
        if compressed || len > MAX_MESSAGE {
            return Err(Malformed);
        }
        if self.0.len() < PREFIX + len {
            return Ok(None);
        }
        self.0.advance(PREFIX);
        Ok(Some(self.0.split_to(len)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_from_frames_of_any_size() {
        let wire = b"\0\0\0\0\x03abc\0\0\0\0\0\0\0\0\0\x01d";
        for size in 1..=wire.len() {
            let mut frames = Frames::default();
            let mut messages = Vec::new();
            for frame in wire.chunks(size) {
                frames.push(Bytes::copy_from_slice(frame));
                while let Some(message) = frames.next().unwrap() {
                    messages.push(message);
                }
            }
            assert_eq!(messages, [&b"abc"[..], b"", b"d"], "frames of {size}");
            assert!(frames.is_empty());
        }
    }

    #[test]
    fn compressed_and_oversized_messages_are_refused() {
        for bad in [&b"\x01\0\0\0\0"[..], b"\0\xff\xff\xff\xff"] {
            let mut frames = Frames::default();
            frames.push(Bytes::copy_from_slice(bad));
            assert_eq!(frames.next(), Err(Malformed));
        }
    }
}
