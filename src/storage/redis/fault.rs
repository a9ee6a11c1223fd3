//! Errors of Redis, classified by what the caller may do next.

use redis::{ErrorKind, RedisError};

use crate::storage::{RefusalCause, StorageError, WriteRefusal};

/// The reason why a call to Redis failed. Cloneable, because many callers may share one failure.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Fault {
    /// Redis has another registry than the expected one, or none.
    #[error("Redis has another registry, or none")]
    Registry,
    /// A script answered with an error code of its own.
    #[error("the script answered {0:?}")]
    Script(Answer),
    /// The step was certainly not executed, so it can safely be retried.
    #[error(transparent)]
    Undone(RedisError),
    /// The step may have been executed, or may still be executed until its deadline.
    #[error(transparent)]
    Unknown(RedisError),
    /// Redis can be read but refuses changes. The change was not made.
    #[error("Redis refuses changes: {0}")]
    Refused(WriteRefusal),
    /// The change was made, but fewer Redis replicas than `wait_replicas` have it.
    #[error("only {got} of {asked} Redis replicas confirmed the change in time: see wait_replicas and wait_timeout_ms")]
    Unreplicated {
        /// How many replicas have the change.
        got: u32,
        /// How many replicas must have the change.
        asked: u32,
    },
    /// An operator has to change a setting. Retries are useless until then.
    #[error("{0}")]
    Setup(String),
    /// The data in Redis was not written by the scripts.
    #[error("the data in Redis is not a registry of sessiond: {0}")]
    Broken(RedisError),
}

/// The error codes of scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// AHEAD: the log ends before the requested position.
    Ahead,
    /// TRIMMED: the log no longer holds the changes after the requested position.
    Trimmed,
    /// OTHER: the log has another mark at the requested position.
    Other,
    /// LOST: the log has another mark at the position up to which this process has read it.
    Lost,
    /// TAKEN: the lease id is already in use.
    Taken,
    /// UNFIT: a key of the partition was lost.
    Unfit,
}

impl Fault {
    /// Returns the fault after a timeout. The step may still be executed.
    pub(super) fn too_late() -> Self {
        Self::Unknown(std::io::Error::new(std::io::ErrorKind::TimedOut, "Redis did not answer in time").into())
    }

    /// Returns the fault of a step that was not sent.
    pub(super) fn unsent(why: &'static str) -> Self {
        Self::Undone((ErrorKind::Client, why).into())
    }

    /// Returns the fault after an answer that no script would give.
    pub(super) fn malformed(what: &'static str) -> Self {
        Self::Broken((ErrorKind::Parse, what).into())
    }

    /// Returns whether the connection must be replaced, because it is broken or may go to the wrong server. A master that
    /// lacks its replicas may have been replaced.
    pub(super) fn needs_new_connection(&self) -> bool {
        match self {
            Self::Undone(_) | Self::Unknown(_) | Self::Unreplicated { .. } => true,
            Self::Refused(refusal) => refusal.cause == RefusalCause::ReadOnly,
            _ => false,
        }
    }

    /// Returns the fault after an error while connecting. No step has been sent yet.
    pub(super) fn while_connecting(error: RedisError) -> Self {
        match Self::from(error) {
            Self::Unknown(error) => Self::Undone(error),
            fault => fault,
        }
    }
}

/// Returns the error code of Redis or of a script. If a command in a script fails, Redis 6.2 wraps its error in another
/// message, from which this extracts the code.
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
                "Redis requires a password, or the one in the URL is wrong ({text}): write redis://USER:PASSWORD@HOST"
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
            return Self::Setup("Redis requires a password: write redis://USER:PASSWORD@HOST".to_owned());
        }
        match error.kind() {
            ErrorKind::AuthenticationFailed => {
                Self::Setup(format!("Redis rejected the user or the password in the URL ({text})"))
            }
            ErrorKind::InvalidClientConfig => Self::Setup(text.to_owned()),
            ErrorKind::UnexpectedReturnType | ErrorKind::Parse => Self::Broken(error),
            // A script failed, or a key has the wrong type: some other program writes to these keys.
            ErrorKind::Server(_) if text.contains("script") || text.contains("WRONGTYPE") => Self::Broken(error),
            // Redis rejected the command before executing it.
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
