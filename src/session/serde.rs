//! Serialization of the ids (feature `serde`). [`session`](super) describes the formats.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, Unexpected, Visitor},
};

use super::{AuthKeyId, LeaseId, SessionId};

macro_rules! id_serde {
    ($id:ident, $number:ty, $serialize:ident, $deserialize:ident, $from:expr) => {
        impl Serialize for $id {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.$serialize((*self).into())
                }
            }
        }

        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Id;

                impl Visitor<'_> for Id {
                    type Value = $id;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("an id, as decimal text or an integer")
                    }

                    fn visit_str<E: Error>(self, text: &str) -> Result<$id, E> {
                        text.parse().map_err(E::custom)
                    }

                    fn visit_i64<E: Error>(self, number: i64) -> Result<$id, E> {
                        let id = <$number>::try_from(number).ok().and_then($from);
                        id.ok_or_else(|| E::invalid_value(Unexpected::Signed(number), &self))
                    }

                    fn visit_u64<E: Error>(self, number: u64) -> Result<$id, E> {
                        let id = <$number>::try_from(number).ok().and_then($from);
                        id.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
                    }
                }

                if deserializer.is_human_readable() {
                    deserializer.deserialize_any(Id)
                } else {
                    deserializer.$deserialize(Id)
                }
            }
        }
    };
}

id_serde!(SessionId, i64, serialize_i64, deserialize_i64, |number| Some(SessionId(number)));
id_serde!(AuthKeyId, i64, serialize_i64, deserialize_i64, |number| Some(AuthKeyId(number)));
id_serde!(LeaseId, u64, serialize_u64, deserialize_u64, LeaseId::from_number);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::SessionKey;

    #[test]
    fn ids_are_text_in_json_and_keep_all_64_bits() {
        let key = SessionKey::new(7, -1);
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(json, r#"{"auth_key_id":"7","session_id":"-1"}"#);
        assert_eq!(serde_json::from_str::<SessionKey>(&json).unwrap(), key);
        for id in [i64::MIN, -1, 0, (1 << 53) + 1, i64::MAX] {
            let json = serde_json::to_string(&SessionId(id)).unwrap();
            assert_eq!(json, format!("\"{id}\""));
            assert_eq!(serde_json::from_str::<SessionId>(&json).unwrap(), SessionId(id));
            assert_eq!(serde_json::from_str::<AuthKeyId>(&id.to_string()).unwrap(), AuthKeyId(id));
        }
        assert_eq!(serde_json::from_str::<LeaseId>("\"7\"").unwrap().number(), 7);
        for bad in ["0", "-1", "\"0\"", "\"x\"", "1.5", "null"] {
            assert!(serde_json::from_str::<LeaseId>(bad).is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<SessionId>("9223372036854775808").is_err());
    }
}
