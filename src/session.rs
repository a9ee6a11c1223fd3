//! The values everything else is about: which session, and what happened to it. Plain data, no I/O.

use std::{
    fmt,
    num::{NonZeroU64, ParseIntError},
    str::FromStr,
};

/// The id of a session, chosen by its client. Any 64-bit value is valid, 0 and negative ones too.
///
/// A signed 64-bit `long`, as `session_id` is in MTProto's TL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub i64);

/// The id of the auth key that a session belongs to; 0 where there are none.
///
/// A signed 64-bit `long`, as `auth_key_id` is in MTProto's TL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuthKeyId(pub i64);

/// What names a session. Equal session ids under different auth keys are different sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey {
    /// The auth key that the session belongs to.
    pub auth_key_id: AuthKeyId,
    /// The session's id under that auth key.
    pub session_id: SessionId,
}

impl SessionKey {
    /// The key of session `session_id` under auth key `auth_key_id` (0 for none).
    #[must_use]
    pub const fn new(auth_key_id: i64, session_id: i64) -> Self {
        Self { auth_key_id: AuthKeyId(auth_key_id), session_id: SessionId(session_id) }
    }
}

/// The id of a lease, given by the registry; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub NonZeroU64);

impl LeaseId {
    /// The largest number that a registry gives to a lease. JavaScript's numbers hold every integer up to it.
    pub const MAX: u64 = (1 << 53) - 1;

    /// The lease of that number; none for 0, as the protocol has it.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    /// The number of the lease.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads a decimal number of at least 1, which is how a lease is displayed.
impl FromStr for LeaseId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let expected = "the positive decimal number that it was granted with";
        text.parse().map(Self).map_err(|source| ParseIdError { text: text.to_owned(), expected, source })
    }
}

/// Why a session was destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestroyReason {
    /// By a call that asked for it, and did not name the session's lease.
    Requested,
    /// By a call under its own lease, that is, by the gateway that held it.
    Released,
    /// Its lease was not kept alive.
    LeaseExpired,
    /// Its lease was revoked.
    LeaseRevoked,
}

/// What happened to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionChange {
    /// It exists now and did not before.
    Created,
    /// It existed and does not any more.
    Destroyed(DestroyReason),
    /// It existed and came under another lease.
    Moved {
        /// The lease that it was under before.
        previous: Option<LeaseId>,
    },
}

/// One change of the registry: what happened to which session, and under which lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionEvent {
    /// The session.
    pub session: SessionKey,
    /// What happened to it.
    pub change: SessionChange,
    /// The lease that it is under after the change; for a session that was destroyed, the lease that it was under. `None` for no
    /// lease, and on streams that do not tell leases.
    pub lease: Option<LeaseId>,
}

impl SessionEvent {
    /// The event of a session that was created under a lease, or under none.
    #[must_use]
    pub const fn created(session: SessionKey, lease: Option<LeaseId>) -> Self {
        Self { session, change: SessionChange::Created, lease }
    }

    /// The event of a session that was destroyed.
    #[must_use]
    pub const fn destroyed(session: SessionKey, reason: DestroyReason, lease: Option<LeaseId>) -> Self {
        Self { session, change: SessionChange::Destroyed(reason), lease }
    }

    /// The event of a session that came under `lease`.
    #[must_use]
    pub const fn moved(session: SessionKey, lease: LeaseId, previous: Option<LeaseId>) -> Self {
        Self { session, change: SessionChange::Moved { previous }, lease: Some(lease) }
    }
}

macro_rules! id_text {
    ($id:ident) => {
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        /// Reads a signed decimal number, or the 64 bits in hexadecimal behind `0x`.
        impl FromStr for $id {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let expected = "a signed 64-bit decimal number, or its bits in hexadecimal behind 0x";
                parse_id(text).map(Self).map_err(|source| ParseIdError { text: text.to_owned(), expected, source })
            }
        }
    };
}

id_text!(SessionId);
id_text!(AuthKeyId);

fn parse_id(text: &str) -> Result<i64, ParseIntError> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        // `from_str_radix` takes a sign, which has no place behind `0x`.
        Some(hex) if !hex.starts_with(['+', '-']) => u64::from_str_radix(hex, 16).map(u64::cast_signed),
        _ => text.parse(),
    }
}

/// A text that is no id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an id ({source}): write {expected}")]
pub struct ParseIdError {
    text: String,
    expected: &'static str,
    source: ParseIntError,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_signed_decimal_or_the_bits_in_hexadecimal() {
        let id = |text: &str| text.parse::<SessionId>().map(|id| id.0);
        assert_eq!(id("0"), Ok(0));
        assert_eq!(id("-1"), Ok(-1));
        assert_eq!(id("9223372036854775807"), Ok(i64::MAX));
        assert_eq!(id("-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(id("0xffffffffffffffff"), Ok(-1));
        assert_eq!(id("0X8000000000000000"), Ok(i64::MIN));
        for bad in ["", "x", "0x", "0x-1", "0x+1", "9223372036854775808", "0x10000000000000000", "1 ", "1.0"] {
            let error = id(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn lease_ids_are_positive() {
        let id = |text: &str| text.parse::<LeaseId>().map(LeaseId::number);
        assert_eq!(id("1"), Ok(1));
        assert_eq!(id("18446744073709551615"), Ok(u64::MAX));
        for bad in ["", "0", "-1", "x", "0x1", "18446744073709551616"] {
            let error = id(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")) && error.contains("positive"), "{error}");
        }
    }
}
