//! Access control: who may make which calls.
//!
//! An [`AccessList`] names tokens and client certificates and gives each some [`Scopes`]. A server reads it from its
//! [access file](crate::server::ServerConfig::access_file); [`AccessList`] describes the format. [`NewToken`] generates
//! a token, as `sessiond token new` does:
//!
//! ```
//! use std::time::SystemTime;
//! use sessiond::access::{AccessList, Credentials, NewToken, Scope, TokenProof};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The client keeps the token. The access file gets a line with its hash.
//! let token = NewToken::generate("gateway-1")?;
//! let list: AccessList = token.line("read,write".parse()?).parse()?;
//!
//! let proof = TokenProof::of(token.token()).ok_or("not a token")?;
//! let granted = list.authorize(&Credentials::Token(proof), Some(Scope::Write), SystemTime::now())?;
//! assert_eq!(granted.name, "gateway-1");
//! # Ok(())
//! # }
//! ```
//!
//! The values here do no I/O, except that [`NewToken::generate`] reads random bytes.

mod list;
mod token;

use std::fmt;

pub use self::{
    list::{AccessList, AccessListError, Granted},
    token::{NewToken, TokenError, TokenProof},
};

/// A permission to make certain calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// Read sessions and leases.
    Read,
    /// Create and destroy sessions, and manage leases.
    Write,
    /// Subscribe to changes.
    Observe,
    /// Everything, including server reflection.
    Admin,
}

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Observe, Self::Admin];

    /// Returns the scope's name, as it is written in access files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Observe => "observe",
            Self::Admin => "admin",
        }
    }
}

/// A set of scopes. Its text form is their names, separated by commas, as in `read,write`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// Returns whether this set permits calls that require `scope`.
    #[must_use]
    pub fn allow(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8 | 1 << Scope::Admin as u8) != 0
    }

    /// Returns the scopes in either set.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::str::FromStr for Scopes {
    type Err = ParseScopesError;

    fn from_str(text: &str) -> Result<Self, ParseScopesError> {
        let mut scopes = Self::default();
        for name in text.split(',') {
            let scope = Scope::ALL.into_iter().find(|scope| scope.name() == name);
            let scope = scope.ok_or_else(|| ParseScopesError { name: name.to_owned() })?;
            scopes.0 |= 1 << scope as u8;
        }
        Ok(scopes)
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Scope::ALL.into_iter().filter(|scope| self.0 & (1 << *scope as u8) != 0).map(Scope::name);
        f.write_str(&names.collect::<Vec<_>>().join(","))
    }
}

/// The error for text that is not a set of scopes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a scope: use read, write, observe or admin")]
pub struct ParseScopesError {
    name: String,
}

/// The credentials that a caller presents: a token with the call, or a certificate with the connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Credentials {
    /// No credentials.
    None,
    /// The proof that the caller has a token.
    Token(TokenProof),
    /// The subject alternative names of the client certificate.
    Certificate(std::sync::Arc<[String]>),
}

/// Why a call is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The caller sent no credentials.
    #[error("the call has no credentials: send a token as `authorization: Bearer TOKEN`")]
    NoCredentials,
    /// The token is not on the list.
    #[error("the token is unknown: check that it is complete and was not withdrawn")]
    UnknownToken,
    /// The token has expired.
    #[error("the token {name:?} has expired: ask for a new one")]
    ExpiredToken {
        /// The token's name.
        name: String,
    },
    /// None of the certificate's names has a valid entry on the list.
    #[error("none of the client certificate's names ({}) has access: ask for an entry in the access list", .names.join(", "))]
    UnknownCertificate {
        /// The certificate's subject alternative names.
        names: Vec<String>,
    },
    /// The call requires a scope that the caller does not have.
    #[error("{name:?} has the scopes {has}, but the call requires {}: ask for that scope", .takes.name())]
    ScopeMissing {
        /// The caller: the name of a token or of a certificate.
        name: String,
        /// The caller's scopes.
        has: Scopes,
        /// The scope that the call requires.
        takes: Scope,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_round_trip_through_text() {
        for text in ["read", "read,write", "observe,admin", "read,write,observe,admin"] {
            assert_eq!(text.parse::<Scopes>().unwrap().to_string(), text);
        }
        for text in ["", "raed", "read,", "read, write", "Read"] {
            assert!(text.parse::<Scopes>().unwrap_err().to_string().contains("is not a scope"), "{text}");
        }
    }

    #[test]
    fn admin_permits_every_call_and_other_scopes_only_their_own() {
        let scopes = |text: &str| text.parse::<Scopes>().unwrap();
        for scope in Scope::ALL {
            assert!(scopes("admin").allow(scope));
            for other in Scope::ALL {
                assert_eq!(scopes(scope.name()).allow(other), scope == other || scope == Scope::Admin);
            }
        }
        assert!(scopes("read").union(scopes("write")).allow(Scope::Write));
    }
}
