//! Who may do what: tokens and client certificates, and the scopes that each has.
//!
//! Plain values, without I/O but for the randomness of a new token. What stands in the file that [`AccessList`] is made of
//! is told there.

mod list;
mod token;

use std::fmt;

pub use self::{
    list::{AccessList, AccessListError, Granted},
    token::{NewToken, TokenError, TokenProof},
};

/// A right to make some of the calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// To ask whether sessions exist.
    Read,
    /// To create and destroy sessions, and to hold leases.
    Write,
    /// To subscribe to changes.
    Observe,
    /// Everything, server reflection too.
    Admin,
}

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Observe, Self::Admin];

    /// The name, as it stands in files.
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

/// A set of scopes, written as their names with commas between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// Whether calls that take `scope` may be made.
    #[must_use]
    pub fn allow(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8 | 1 << Scope::Admin as u8) != 0
    }

    /// Those of either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::str::FromStr for Scopes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut scopes = Self::default();
        for name in text.split(',') {
            let scope = Scope::ALL.into_iter().find(|scope| scope.name() == name);
            let scope = scope.ok_or_else(|| format!("{name:?} is no scope: write read, write, observe or admin"))?;
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

/// Who calls, as far as the connection and the call tell.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// Nobody that could be told.
    None,
    /// Who has a token.
    Token(TokenProof),
    /// Who has the private key of a certificate, by the certificate's subject alternative names.
    Certificate(std::sync::Arc<[String]>),
}

/// Why somebody may not make a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Nothing tells who calls.
    #[error("there are no credentials: send a token as `authorization: Bearer TOKEN`")]
    NoCredentials,
    /// The token is not on the list.
    #[error("the token is not known here: see that it is whole, and that it was not withdrawn")]
    UnknownToken,
    /// The token has been one for long enough.
    #[error("the token {name:?} has expired: ask for a new one")]
    ExpiredToken {
        /// The token's name.
        name: String,
    },
    /// None of a certificate's names is on the list.
    #[error("none of the client certificate's names ({}) may do anything here: ask for scopes for one", .names.join(", "))]
    UnknownCertificate {
        /// The subject alternative names.
        names: Vec<String>,
    },
    /// The call takes a scope that the caller does not have.
    #[error("{name:?} has the scopes {has} and this takes {}: ask for it", .takes.name())]
    ScopeMissing {
        /// Who called: the name of a token or of a certificate.
        name: String,
        /// What the caller has.
        has: Scopes,
        /// What the call takes.
        takes: Scope,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_written_as_they_are_read() {
        for text in ["read", "read,write", "observe,admin", "read,write,observe,admin"] {
            assert_eq!(text.parse::<Scopes>().unwrap().to_string(), text);
        }
        for text in ["", "raed", "read,", "read, write", "Read"] {
            assert!(text.parse::<Scopes>().unwrap_err().contains("is no scope"), "{text}");
        }
    }

    #[test]
    fn admin_may_do_everything_and_the_others_only_what_they_say() {
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
