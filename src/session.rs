//! Session ids, lease ids and session events: plain values that all parts of the library share.
//!
//! A [`SessionKey`] identifies a session: a [`SessionId`], under an [`AuthKeyId`] that is 0 if the fleet has no auth
//! keys. A [`LeaseId`] identifies a lease. A [`SessionEvent`] is one change in the registry.
//!
//! With the feature `serde`, ids and keys can be serialized. Formats that people read, such as JSON, hold an id as its
//! decimal text, because JavaScript rounds numbers beyond 2^53; numbers are accepted, too. Binary formats hold an
//! integer.

#[cfg(feature = "serde")]
mod serde;

use std::{
    fmt,
    num::{NonZeroU64, ParseIntError},
    str::FromStr,
};

/// The most sessions that one batch call may name. A client splits longer lists.
pub const MAX_BATCH: usize = 65_536;

/// The id of a session, chosen by its client. Every 64-bit value is valid, including 0 and negative numbers.
///
/// Signed, like MTProto's `session_id`, which is a `long`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub i64);

/// The id of the auth key that a session belongs to, or 0 if auth keys are not used.
///
/// Signed, like MTProto's `auth_key_id`, which is a `long`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuthKeyId(pub i64);

/// Identifies a session. The same session id under two auth keys names two sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(::serde::Deserialize, ::serde::Serialize))]
pub struct SessionKey {
    /// The auth key that the session belongs to.
    pub auth_key_id: AuthKeyId,
    /// The session's id under that auth key.
    pub session_id: SessionId,
}

impl From<(AuthKeyId, SessionId)> for SessionKey {
    fn from((auth_key_id, session_id): (AuthKeyId, SessionId)) -> Self {
        Self { auth_key_id, session_id }
    }
}

impl SessionKey {
    /// Returns the key of session `session_id` under auth key `auth_key_id` (0 for none).
    #[must_use]
    pub const fn new(auth_key_id: i64, session_id: i64) -> Self {
        Self { auth_key_id: AuthKeyId(auth_key_id), session_id: SessionId(session_id) }
    }
}

/// The id of a lease, assigned by the registry. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub NonZeroU64);

impl LeaseId {
    /// The largest id that a registry assigns. JavaScript numbers represent all integers up to it exactly.
    pub const MAX: u64 = (1 << 53) - 1;

    /// Returns the lease with this number. `None` for 0, which means "no lease" in the protocol.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    /// Returns the lease's number.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0.get()
    }
}

impl From<NonZeroU64> for LeaseId {
    fn from(number: NonZeroU64) -> Self {
        Self(number)
    }
}

impl From<LeaseId> for NonZeroU64 {
    fn from(id: LeaseId) -> Self {
        id.0
    }
}

impl From<LeaseId> for u64 {
    fn from(id: LeaseId) -> Self {
        id.number()
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Parses a positive decimal number, the form in which a lease id is displayed.
impl FromStr for LeaseId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let expected = "the positive decimal number that it was granted with";
        text.parse().map(Self).map_err(|cause| ParseIdError { text: text.to_owned(), expected, cause })
    }
}

/// Why a session was destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DestroyReason {
    /// A call destroyed it without naming the lease that the session was under.
    Requested,
    /// A call destroyed it under its own lease: the gateway that held the session released it.
    Released,
    /// Its lease expired, because it was not kept alive.
    LeaseExpired,
    /// Its lease was revoked.
    LeaseRevoked,
}

impl DestroyReason {
    /// Returns the reason's name in lower case, as the command line prints it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Released => "released",
            Self::LeaseExpired => "lease_expired",
            Self::LeaseRevoked => "lease_revoked",
        }
    }
}

/// What happened to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionChange {
    /// It was created.
    Created,
    /// It was destroyed.
    Destroyed(DestroyReason),
    /// It moved to another lease.
    Moved {
        /// The lease that it was under before the move.
        previous: Option<LeaseId>,
    },
}

/// One change in the registry: what happened to which session, and under which lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SessionEvent {
    /// The session.
    pub session: SessionKey,
    /// What happened to it.
    pub change: SessionChange,
    /// The session's lease after the change. For a destroyed session, the lease that it was under. `None` if it is
    /// under no lease, and on streams without placements.
    pub lease: Option<LeaseId>,
}

impl SessionEvent {
    /// Returns the event of a `change`.
    #[must_use]
    pub const fn new(session: SessionKey, change: SessionChange, lease: Option<LeaseId>) -> Self {
        Self { session, change, lease }
    }

    /// Returns the event of a session that was created, under `lease` if there is one.
    #[must_use]
    pub const fn created(session: SessionKey, lease: Option<LeaseId>) -> Self {
        Self { session, change: SessionChange::Created, lease }
    }

    /// Returns the event of a session that was destroyed.
    #[must_use]
    pub const fn destroyed(session: SessionKey, reason: DestroyReason, lease: Option<LeaseId>) -> Self {
        Self { session, change: SessionChange::Destroyed(reason), lease }
    }

    /// Returns the event of a session that moved to `lease`.
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

        /// Parses a signed decimal number, or `0x` and the 64 bits in hexadecimal.
        impl FromStr for $id {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let expected = "a signed 64-bit decimal number, or 0x and its bits in hexadecimal";
                parse_id(text).map(Self).map_err(|cause| ParseIdError { text: text.to_owned(), expected, cause })
            }
        }

        impl From<i64> for $id {
            fn from(id: i64) -> Self {
                Self(id)
            }
        }

        impl From<$id> for i64 {
            fn from(id: $id) -> Self {
                id.0
            }
        }
    };
}

id_text!(SessionId);
id_text!(AuthKeyId);

fn parse_id(text: &str) -> Result<i64, ParseIntError> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        // `from_str_radix` accepts a sign, which is not allowed after `0x`.
        Some(hex) if !hex.starts_with(['+', '-']) => u64::from_str_radix(hex, 16).map(u64::cast_signed),
        _ => text.parse(),
    }
}

/// The error for text that is not an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an id ({cause}): write {expected}")]
pub struct ParseIdError {
    text: String,
    expected: &'static str,
    cause: ParseIntError,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_parse_as_signed_decimal_or_hexadecimal_bits() {
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
