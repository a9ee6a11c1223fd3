//! The `create`, `has` and `destroy` commands.

use std::fmt::Write as _;

use clap::Args;
use sessiond::{
    client::{Client, ClientError},
    session::{AuthKeyId, LeaseId, SessionKey},
};

use super::{
    call::CallArgs,
    exit::{CliError, Exit},
    format::{Format, JsonLine},
    ids::{IdArg, Ids},
    output::Output,
};

#[derive(Debug, Args)]
pub(crate) struct SessionsArgs {
    /// The ids of the sessions: signed 64-bit numbers in decimal, or their bits in hexadecimal after 0x. `-` reads ids
    /// from standard input, one per line, and sends them in batches as they arrive.
    #[arg(value_name = "ID", required = true, allow_negative_numbers = true)]
    pub(super) ids: Vec<IdArg>,

    /// The auth key id of the sessions, or 0 for none.
    #[arg(long, env = "SESSIOND_AUTH_KEY_ID", value_name = "K", default_value = "0", allow_negative_numbers = true)]
    pub(super) auth_key_id: AuthKeyId,

    #[command(flatten)]
    pub(super) call: CallArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Creates the sessions under this lease, which destroys them when it ends. Existing sessions move to it. Without a
    /// lease, existing sessions keep theirs.
    #[arg(long, env = "SESSIOND_LEASE", value_name = "LEASE_ID")]
    pub(crate) lease: Option<LeaseId>,

    /// Moves existing sessions only if they are under this lease, or 0 for none. Sessions under another live lease stay
    /// there.
    #[arg(long, env = "SESSIOND_ONLY_FROM", value_name = "LEASE_ID", requires = "lease")]
    pub(crate) only_from: Option<u64>,

    #[command(flatten)]
    pub(crate) sessions: SessionsArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DestroyArgs {
    /// Destroys only sessions under this lease. Without it, destroys sessions under any lease or none.
    #[arg(long, env = "SESSIOND_LEASE", value_name = "LEASE_ID")]
    pub(crate) lease: Option<LeaseId>,

    #[command(flatten)]
    pub(crate) sessions: SessionsArgs,
}

/// What to do with the sessions, and under which lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Create(Option<LeaseId>),
    /// Creates a session under the first lease, or takes an existing one from the second lease (`None`: from no lease).
    Take(LeaseId, Option<LeaseId>),
    Has,
    Destroy(Option<LeaseId>),
}

pub(crate) async fn run(args: SessionsArgs, verb: Verb) -> Result<Exit, CliError> {
    let output = Output::stdout()?;
    let result = do_all(args, verb, &output).await;
    output.finish(result).await
}

async fn do_all(args: SessionsArgs, verb: Verb, output: &Output) -> Result<Exit, CliError> {
    let client = args.call.client()?;
    let mut ids = Ids::new(args.ids);
    let mut all = true;
    while let Some(batch) = ids.next_batch().await? {
        let sessions: Vec<_> =
            batch.into_iter().map(|session_id| SessionKey { auth_key_id: args.auth_key_id, session_id }).collect();
        let answers = verb.call(&client, &sessions).await.map_err(|error| args.call.error(&error))?;
        all &= answers.iter().all(|&yes| yes);
        let mut lines = String::new();
        for (session, yes) in sessions.into_iter().zip(answers) {
            verb.print(session, yes, args.call.format, &mut lines);
        }
        output.write(lines).await?;
    }
    // A session that was created or destroyed before is not a failure, because both calls are idempotent.
    Ok(if verb == Verb::Has && !all { Exit::No } else { Exit::Done })
}

impl Verb {
    pub(crate) fn create(lease: Option<LeaseId>, only_from: Option<u64>) -> Self {
        match (lease, only_from) {
            (Some(lease), Some(from)) => Self::Take(lease, LeaseId::from_number(from)),
            _ => Self::Create(lease),
        }
    }

    async fn call(self, client: &Client, sessions: &[SessionKey]) -> Result<Vec<bool>, ClientError> {
        match (self, sessions) {
            (Self::Create(None), &[session]) => client.create(session).await.map(|yes| vec![yes]),
            (Self::Create(None), sessions) => client.batch_create(sessions).await,
            (Self::Create(Some(lease)), sessions) => client.batch_create_under(sessions, lease).await,
            (Self::Take(lease, from), sessions) => {
                // Each answer is whether the session is now under the lease.
                let placed = client.batch_take(sessions, lease, from).await?;
                Ok(placed.into_iter().map(|placed| placed.lease == Some(lease)).collect())
            }
            (Self::Has, &[session]) => client.has(session).await.map(|yes| vec![yes]),
            (Self::Has, sessions) => client.batch_has(sessions).await,
            (Self::Destroy(None), &[session]) => client.destroy(session).await.map(|yes| vec![yes]),
            (Self::Destroy(None), sessions) => client.batch_destroy(sessions).await,
            (Self::Destroy(Some(lease)), sessions) => client.batch_destroy_under(sessions, lease).await,
        }
    }

    fn print(self, session: SessionKey, yes: bool, format: Format, out: &mut String) {
        let (member, text) = match (self, yes) {
            (Self::Create(_), true) => ("created", "created"),
            (Self::Create(_), false) => ("created", "existed already"),
            (Self::Take(..), true) => ("held", "held"),
            (Self::Take(..), false) => ("held", "held by another lease"),
            (Self::Has, true) => ("exists", "exists"),
            (Self::Has, false) => ("exists", "missing"),
            (Self::Destroy(_), true) => ("destroyed", "destroyed"),
            (Self::Destroy(None), false) => ("destroyed", "did not exist"),
            (Self::Destroy(Some(_)), false) => ("destroyed", "not under this lease"),
        };
        match format {
            // Writing to a `String` cannot fail.
            Format::Text => drop(writeln!(out, "{} {text}", session.session_id)),
            Format::Json => JsonLine::begin(out)
                .int64("session_id", session.session_id)
                .int64("auth_key_id", session.auth_key_id)
                .plain(member, yes)
                .end(),
        }
    }
}
