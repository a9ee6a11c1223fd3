//! Tokens. A token is a name and a secret, of which the server keeps only a hash.

use std::fmt;

use ring::{
    digest,
    rand::{SecureRandom as _, SystemRandom},
};
use subtle::ConstantTimeEq as _;

use super::Scopes;

/// How many random bytes a secret has. They are too many to guess, so a plain unsalted hash of the token is safe to
/// publish.
const SECRET: usize = 32;

/// The longest token name, in bytes.
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

    /// Compares in constant time.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    /// Parses what `Display` writes.
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

/// The proof that a caller has a token: the token's name, and the hash of the whole token.
#[derive(Clone)]
pub struct TokenProof {
    pub(super) name: String,
    pub(super) hash: TokenHash,
}

impl TokenProof {
    /// Parses the text that follows `Bearer `. Returns `None` if it is not a token.
    #[must_use]
    pub fn of(token: &str) -> Option<Self> {
        // Names may contain dots, secrets do not.
        let (name, _) = token.rsplit_once('.').filter(|(name, _)| is_name(name))?;
        Some(Self { name: name.to_owned(), hash: TokenHash::of(token) })
    }
}

impl fmt::Debug for TokenProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TokenProof").field(&self.name).finish()
    }
}

/// Why a token cannot be generated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The name is not a valid token name.
    #[error("{0:?} is not a token name: use 1 to {MAX_NAME} letters, digits, '-', '_' and '.'")]
    BadName(String),
    /// The operating system provided no random bytes.
    #[error("the operating system provided no random bytes: check whether this process may read them")]
    NoRandomness,
}

/// A newly generated token. Nothing else holds its secret.
pub struct NewToken {
    token: String,
    name: String,
}

impl NewToken {
    /// Generates a token with this name.
    ///
    /// # Errors
    ///
    /// [`TokenError`] if the name is invalid, or the operating system provides no random bytes.
    pub fn generate(name: &str) -> Result<Self, TokenError> {
        if !is_name(name) {
            return Err(TokenError::BadName(name.to_owned()));
        }
        let mut secret = [0; SECRET];
        SystemRandom::new().fill(&mut secret).map_err(|_| TokenError::NoRandomness)?;
        let digits: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { token: format!("{name}.{digits}"), name: name.to_owned() })
    }

    /// Returns the token itself, to show to its user once.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Returns the token's line for the file of an [`AccessList`](super::AccessList), without a newline.
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
