//! The requests and responses of calls in their wire format.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::encoding::{encode_varint, encoded_len_varint};

use super::{
    fields::{Fields, Malformed, Value},
    frames::PREFIX,
    ring::Asked,
};

const SESSION_ID: u8 = 1 << 3 | 1;
const AUTH_KEY_ID: u8 = 2 << 3 | 1;
const SESSION_IDS: u8 = 1 << 3 | 2;
const AUTH_KEY_IDS: u8 = 2 << 3 | 2;
/// The number of the only field of a response.
const ANSWER: u64 = 1;

/// Encodes a request for one session. It is the same for each kind of call.
pub(super) fn unary(auth_key_id: i64, session: u32) -> Bytes {
    const LEN: usize = 2 * (1 + size_of::<u64>());
    let mut bytes = BytesMut::with_capacity(PREFIX + LEN);
    bytes.put_u8(0);
    bytes.put_u32(LEN as u32);
    bytes.put_u8(SESSION_ID);
    bytes.put_i64_le(session.into());
    bytes.put_u8(AUTH_KEY_ID);
    bytes.put_i64_le(auth_key_id);
    bytes.freeze()
}

/// Encodes a request for many sessions. It is the same for each kind of call.
pub(super) fn batch(auth_key_id: i64, asked: &[Asked]) -> Bytes {
    let list = size_of_val(&auth_key_id) * asked.len();
    let len = 2 * (1 + encoded_len_varint(list as u64) + list);
    let mut bytes = BytesMut::with_capacity(PREFIX + len);
    bytes.put_u8(0);
    bytes.put_u32(len as u32);
    bytes.put_u8(SESSION_IDS);
    encode_varint(list as u64, &mut bytes);
    asked.iter().for_each(|asked| bytes.put_i64_le(asked.session.into()));
    bytes.put_u8(AUTH_KEY_IDS);
    encode_varint(list as u64, &mut bytes);
    asked.iter().for_each(|_| bytes.put_i64_le(auth_key_id));
    bytes.freeze()
}

/// Reads the response for one session.
pub(super) fn read_unary(message: &[u8]) -> Result<bool, Malformed> {
    let mut answer = false;
    let mut fields = Fields(message);
    while let Some((number, value)) = fields.next()? {
        if let (ANSWER, Value::Number(yes)) = (number, value) {
            answer = yes != 0;
        }
    }
    Ok(answer)
}

/// Reads the response for many sessions, one byte each.
pub(super) fn read_batch(message: &[u8]) -> Result<&[u8], Malformed> {
    let mut answers = &[][..];
    let mut fields = Fields(message);
    while let Some((number, value)) = fields.next()? {
        if let (ANSWER, Value::Bytes(list)) = (number, value) {
            answers = list;
        }
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use sessiond::proto;

    use super::*;

    fn message(bytes: &[u8]) -> &[u8] {
        let (prefix, message) = bytes.split_at(PREFIX);
        assert_eq!(prefix, [&[0], &(message.len() as u32).to_be_bytes()[..]].concat());
        message
    }

    #[test]
    fn requests_follow_the_protocol() {
        let request = proto::CreateSessionRequest::decode(message(&unary(-9, 7))).unwrap();
        assert_eq!(
            request,
            proto::CreateSessionRequest { session_id: Some(7), auth_key_id: -9, lease_id: 0, ..Default::default() }
        );
        for len in [1, 2, 15, 16, 65_536] {
            let asked: Vec<_> = (0..len).map(|session| Asked { session, expected: true }).collect();
            let bytes = batch(-9, &asked);
            let request = proto::BatchCreateSessionsRequest::decode(message(&bytes)).unwrap();
            assert!(request.session_ids.iter().copied().eq(0..i64::from(len)));
            assert_eq!(request.auth_key_ids, vec![-9; len as usize]);
        }
    }

    #[test]
    fn responses_follow_the_protocol() {
        for created in [true, false] {
            assert_eq!(
                read_unary(&proto::CreateSessionResponse { created, ..Default::default() }.encode_to_vec()),
                Ok(created)
            );
        }
        let created = vec![true, false, true];
        let bytes = proto::BatchCreateSessionsResponse { created, ..Default::default() }.encode_to_vec();
        assert_eq!(read_batch(&bytes), Ok(&[1, 0, 1][..]));
        assert_eq!(read_batch(&[0x0a]), Err(Malformed));
    }
}
