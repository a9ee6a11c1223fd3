//! What can go wrong with Redis, sorted by what may be done next.

use redis::{ErrorKind, RedisError};

use crate::storage::{RefusalCause, StorageError, WriteRefusal};

/// Why Redis did not do what it was asked to. Many callers may share one.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Fault {
    /// Redis holds another registry than the expected one, or none.
    #[error("another registry, or none, is in Redis")]
    Registry,
    /// A script answered that it cannot do it.
    #[error("the script answered {0:?}")]
    Script(Answer),
    /// The step was certainly not executed, so it may be sent again.
    #[error(transparent)]
    Undone(RedisError),
    /// The step may have been executed, or may still be until its time is over.
    #[error(transparent)]
    Unknown(RedisError),
    /// Redis refuses changes but can be read. The change was not made.
    #[error("Redis refuses changes: {0}")]
    Refused(WriteRefusal),
    /// The change was made, but fewer of Redis' replicas than `wait_replicas` have it.
    #[error("{got} of {asked} replicas of Redis had the change in time (wait_replicas, wait_timeout_ms)")]
    Unreplicated {
        /// How many have it.
        got: u32,
        /// How many must have it.
        asked: u32,
    },
    /// Waiting does not help: somebody has to change a setting.
    #[error("{0}")]
    Setup(String),
    /// The data in Redis is not what the scripts put there.
    #[error("what is in Redis is not a registry of sessiond: {0}")]
    Broken(RedisError),
}

/// The error codes that scripts answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The log ends before that position.
    Ahead,
    /// The log no longer holds what follows that position.
    Trimmed,
    /// The log has another mark at that position.
    Other,
    /// The log has another mark at the place up to which this process has read it.
    Lost,
    /// A lease has that id already.
    Taken,
    /// A key of the partition was lost.
    Unfit,
}

impl Fault {
    /// The fault after a timeout: the step may still be executed.
    pub(super) fn too_late() -> Self {
        Self::Unknown(std::io::Error::new(std::io::ErrorKind::TimedOut, "Redis did not answer in time").into())
    }

    /// The fault of a step that was not sent.
    pub(super) fn unsent(why: &'static str) -> Self {
        Self::Undone((ErrorKind::Client, why).into())
    }

    /// The fault after an answer that no script gives.
    pub(super) fn malformed(what: &'static str) -> Self {
        Self::Broken((ErrorKind::Parse, what).into())
    }

    /// Returns whether the connection must be replaced: it is broken, or the server at its other end is the wrong one.
    pub(super) fn needs_new_connection(&self) -> bool {
        match self {
            Self::Undone(_) | Self::Unknown(_) => true,
            Self::Refused(refusal) => refusal.cause == RefusalCause::ReadOnly,
            _ => false,
        }
    }

    /// The fault after an error while connecting. Nothing had been asked yet.
    pub(super) fn while_connecting(error: RedisError) -> Self {
        match Self::from(error) {
            Self::Unknown(error) => Self::Undone(error),
            fault => fault,
        }
    }
}

/// Returns the error code of Redis or of a script. Redis 6.2 wraps the error of a command in a script in a text of its
/// own.
fn code(error: &RedisError) -> String {
    let text = error.detail().unwrap_or_default();
    let code = error.code().unwrap_or_default();
    // "ERR Error running script (call to f_…): @user_script:…: -OOM command not allowed …"
    let wrapped = text.rsplit_once(": -").map(|(_, inner)| inner);
    match wrapped {
        Some(inner) if code == "ERR" => inner.split(' ').next().unwrap_or_default().to_owned(),
        _ => code.to_owned(),
    }
}

impl From<RedisError> for Fault {
    fn from(error: RedisError) -> Self {
        let refused = |cause| Self::Refused(WriteRefusal::new(cause, &error.to_string()));
        let text = error.to_string();
        match code(&error).as_str() {
            "REGISTRY" => Self::Registry,
            "AHEAD" => Self::Script(Answer::Ahead),
            "TRIMMED" => Self::Script(Answer::Trimmed),
            "OTHER" => Self::Script(Answer::Other),
            "LOST" => Self::Script(Answer::Lost),
            "TAKEN" => Self::Script(Answer::Taken),
            "UNFIT" => Self::Script(Answer::Unfit),
            "READONLY" => refused(RefusalCause::ReadOnly),
            "OOM" => refused(RefusalCause::OutOfMemory),
            "NOREPLICAS" => refused(RefusalCause::TooFewReplicas),
            "MISCONF" => refused(RefusalCause::NotPersisting),
            "NOPERM" => refused(RefusalCause::NotPermitted),
            "NOAUTH" | "WRONGPASS" => Self::Setup(format!(
                "Redis asks for a password, or the one in the URL is wrong ({text}): write redis://USER:PASSWORD@HOST"
            )),
            "LATE" | "BEHIND" | "MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN" | "MASTERDOWN" | "LOADING" | "BUSY"
            | "NOSCRIPT" => Self::Undone(error),
            "WRONGTYPE" => Self::Broken(error),
            _ => Self::by_text(error, &text),
        }
    }
}

impl Fault {
    fn by_text(error: RedisError, text: &str) -> Self {
        let refused = |cause| Self::Refused(WriteRefusal::new(cause, text));
        if text.contains("can't run this command") || text.contains("ACL failure") || text.contains("no permissions") {
            return refused(RefusalCause::NotPermitted);
        }
        if text.contains("unauthenticated multibulk") || text.contains("unauthenticated bulk") {
            return Self::Setup("Redis asks for a password: write redis://USER:PASSWORD@HOST".to_owned());
        }
        match error.kind() {
            ErrorKind::AuthenticationFailed => {
                Self::Setup(format!("Redis does not accept the user or the password in the URL ({text})"))
            }
            ErrorKind::InvalidClientConfig => Self::Setup(text.to_owned()),
            ErrorKind::UnexpectedReturnType | ErrorKind::Parse => Self::Broken(error),
            // A script failed, or a key has another type: somebody else writes to these keys.
            ErrorKind::Server(_) if text.contains("script") || text.contains("WRONGTYPE") => Self::Broken(error),
            // Redis answered with an error before it did anything.
            ErrorKind::Server(_) => Self::Undone(error),
            _ => Self::Unknown(error),
        }
    }
}

impl From<Fault> for StorageError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused(refusal) => Self::Refused(refusal),
            Fault::Broken(_) | Fault::Script(_) => Self::Broken(Box::new(fault)),
            _ => Self::Unavailable(Box::new(fault)),
        }
    }
}
