//! The codec of the generated clients and services.

use std::marker::PhantomData;

use bytes::Buf as _;
use prost::Message;
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::ProstCodec;

/// The initial size of a buffer. It fits calls about one session, and grows for larger messages.
const BUFFER: usize = 128;

/// How many bytes of a stream are encoded before they are sent. This is tonic's default.
const YIELD_THRESHOLD: usize = 32 << 10;

/// tonic's prost codec with smaller buffers. By default each call allocates two buffers of 8 KiB, and most messages are
/// shorter than 30 bytes.
#[derive(Clone, Debug)]
pub(crate) struct SmallBuffers<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = SliceDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, YIELD_THRESHOLD))
    }

    fn decoder(&mut self) -> Self::Decoder {
        SliceDecoder(PhantomData)
    }
}

/// Decodes messages as tonic's decoder does, but from a slice. From tonic's buffer, prost copies every number of a batch
/// on its own, which doubles the cost of decoding it.
#[derive(Clone, Debug)]
pub(crate) struct SliceDecoder<U>(PhantomData<U>);

impl<U: Message + Default> Decoder for SliceDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let length = buffer.remaining();
        let message = if buffer.chunk().len() == length {
            let message = U::decode(buffer.chunk());
            buffer.advance(length);
            message
        } else {
            U::decode(&*buffer.copy_to_bytes(length))
        };
        message.map(Some).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, YIELD_THRESHOLD)
    }
}
