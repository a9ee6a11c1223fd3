//! Reads the fields of an encoded protobuf message in place.
//!
//! prost would build a vector of events for every message of every observer, which costs more than everything else that
//! an observer does.

/// The error for bytes that are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// A varint or a fixed-size number.
    Number(u64),
    Bytes(&'a [u8]),
}

/// Iterates over the fields of a message.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    /// Returns the next field with its number.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Number(u64::from_le_bytes(self.array()?)),
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                let (bytes, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
                self.0 = rest;
                Value::Bytes(bytes)
            }
            5 => Value::Number(u32::from_le_bytes(self.array()?).into()),
            _ => return Err(Malformed),
        };
        Ok(Some((tag >> 3, value)))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*bytes)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(Malformed)?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Malformed)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use sessiond::proto;

    use super::*;

    #[test]
    fn fields_encoded_by_prost_are_read() {
        let event =
            proto::SessionEvent { r#type: 2, session_id: -3, auth_key_id: i64::MAX, reason: 300, ..Default::default() };
        let bytes = event.encode_to_vec();
        let mut fields = Fields(&bytes);
        for field in [(1, 2), (2, -3_i64 as u64), (3, i64::MAX as u64), (4, 300)] {
            assert_eq!(fields.next(), Ok(Some((field.0, Value::Number(field.1)))));
        }
        assert_eq!(fields.next(), Ok(None));
        let bytes = proto::SubscribeResponse { body: None, cursor: "c".repeat(200) }.encode_to_vec();
        assert_eq!(Fields(&bytes).next(), Ok(Some((2, Value::Bytes("c".repeat(200).as_bytes())))));
    }

    #[test]
    fn truncated_and_invalid_messages_are_malformed() {
        for bad in [&[0x08][..], &[0x09, 1, 2], &[0x0a, 5, 1], &[0x0b], &[0x08, 255, 255], &[0xff; 11]] {
            assert_eq!(Fields(bad).next(), Err(Malformed), "{bad:?}");
        }
    }
}
