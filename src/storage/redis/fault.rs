//! What can go wrong with Redis.

use redis::RedisError;

use crate::storage::StorageError;

/// Why Redis did not do what it was asked. Many callers may share one.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Fault {
    /// What is in Redis is another registry than the one asked for, or none.
    #[error("the registry in Redis is another one by now")]
    Registry,
    /// A script's own answer that it cannot do it.
    #[error("Redis answered {0}")]
    Refused(String),
    /// Redis cannot be reached, does not answer in time, or cannot serve now.
    #[error(transparent)]
    Unavailable(RedisError),
    /// Fewer of Redis' replicas than asked for have the change, which was made.
    #[error("{got} of {asked} replicas of Redis had the change in time (wait_replicas, wait_timeout_ms)")]
    Unreplicated {
        /// How many have it.
        got: u32,
        /// How many were to have it.
        asked: u32,
    },
    /// The registry in Redis is divided in another way than this replica knows.
    #[error("{0}")]
    Layout(String),
    /// What is in Redis is not what scripts put there.
    #[error("what is in Redis is not a registry of sessiond: {0}")]
    Broken(RedisError),
}

/// The codes that scripts answer with.
const OWN_CODES: [&str; 4] = ["AHEAD", "TRIMMED", "TAKEN", "REGISTRY"];

impl From<RedisError> for Fault {
    fn from(error: RedisError) -> Self {
        match error.code() {
            Some("REGISTRY") => Self::Registry,
            Some(code) if OWN_CODES.contains(&code) => Self::Refused(code.to_owned()),
            // Keys of another type, or a script that fails: somebody else writes to these keys.
            Some("WRONGTYPE") => Self::Broken(error),
            Some("ERR") if error.to_string().contains("script") => Self::Broken(error),
            _ if matches!(error.kind(), redis::ErrorKind::UnexpectedReturnType | redis::ErrorKind::Parse) => {
                Self::Broken(error)
            }
            _ => Self::Unavailable(error),
        }
    }
}

impl From<Fault> for StorageError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Broken(_) | Fault::Refused(_) => Self::Broken(Box::new(fault)),
            _ => Self::Unavailable(Box::new(fault)),
        }
    }
}
