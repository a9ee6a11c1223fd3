//! Tokens: a name, and a secret that nobody keeps but who shows it.

use std::fmt;

use ring::{
    digest,
    rand::{SecureRandom as _, SystemRandom},
};
use subtle::ConstantTimeEq as _;

use super::Scopes;

/// How many random bytes a secret has: too many to guess, so that one plain hash of it gives nothing away.
const SECRET: usize = 32;

/// The longest name.
const MAX_NAME: usize = 64;

/// The SHA-256 of a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenHash([u8; 32]);

impl TokenHash {
    fn of(token: &str) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
        Self(hash)
    }

    /// Takes as long whether and wherever they differ.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    /// Reads what `Display` writes.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sha256:")?.as_bytes();
        let mut hash = [0; 32];
        if digits.len() != 2 * hash.len() {
            return None;
        }
        for (byte, digits) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            *byte = digit(digits[0])? << 4 | digit(digits[1])?;
        }
        Some(Self(hash))
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// That somebody has shown a token: its name, and the hash of all of it.
#[derive(Clone)]
pub struct TokenProof {
    pub(super) name: String,
    pub(super) hash: TokenHash,
}

impl TokenProof {
    /// Reads what follows `Bearer `. None where it is no token at all.
    #[must_use]
    pub fn of(token: &str) -> Option<Self> {
        // The secret has no dot in it, and names may have.
        let (name, _) = token.rsplit_once('.').filter(|(name, _)| is_name(name))?;
        Some(Self { name: name.to_owned(), hash: TokenHash::of(token) })
    }
}

impl fmt::Debug for TokenProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TokenProof").field(&self.name).finish()
    }
}

/// Why a token cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The name is none.
    #[error("{0:?} is no name of a token: write 1 to {MAX_NAME} letters, digits, '-', '_' and '.'")]
    BadName(String),
    /// The system gives no randomness.
    #[error("the system gives no randomness: see whether this process may read it")]
    NoRandomness,
}

/// A token that has just been made. Its secret is nowhere else.
pub struct NewToken {
    token: String,
    name: String,
}

impl NewToken {
    /// Makes a token of this name.
    ///
    /// # Errors
    ///
    /// [`TokenError`] when the name is none, or the system gives no randomness.
    pub fn generate(name: &str) -> Result<Self, TokenError> {
        if !is_name(name) {
            return Err(TokenError::BadName(name.to_owned()));
        }
        let mut secret = [0; SECRET];
        SystemRandom::new().fill(&mut secret).map_err(|_| TokenError::NoRandomness)?;
        let digits: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { token: format!("{name}.{digits}"), name: name.to_owned() })
    }

    /// The token itself, to be shown once.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The line for the file of an [`AccessList`](super::AccessList), without an end.
    #[must_use]
    pub fn line(&self, scopes: Scopes) -> String {
        format!("token {} {scopes} {}", self.name, TokenHash::of(&self.token))
    }
}

impl fmt::Debug for NewToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NewToken").field(&self.name).finish()
    }
}

pub(super) fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}
