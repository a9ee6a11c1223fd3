//! The `lookup` command.

use std::{collections::HashMap, fmt::Write as _};

use sessiond::{
    client::{Client, ClientError, Found},
    session::{LeaseId, SessionKey},
};

use super::{
    exit::{CliError, Exit},
    format::{Format, JsonLine},
    ids::Ids,
    output::Output,
    sessions::SessionsArgs,
};

pub(crate) async fn run(args: SessionsArgs) -> Result<Exit, CliError> {
    let output = Output::stdout()?;
    let result = look_up_all(args, &output).await;
    output.finish(result).await
}

async fn look_up_all(args: SessionsArgs, output: &Output) -> Result<Exit, CliError> {
    let client = args.call.client()?;
    let mut ids = Ids::new(args.ids);
    let mut owners = HashMap::new();
    let mut all = true;
    while let Some(batch) = ids.next_batch().await? {
        let sessions: Vec<_> =
            batch.into_iter().map(|session_id| SessionKey { auth_key_id: args.auth_key_id, session_id }).collect();
        let error = |error| args.call.error(&error);
        let found = client.batch_lookup(&sessions).await.map_err(error)?;
        let mut lines = String::new();
        for (session, Found { exists, lease, .. }) in sessions.into_iter().zip(found) {
            all &= exists;
            let owner = match lease {
                Some(lease) => owner_of(&client, session, lease, &mut owners).await.map_err(error)?,
                None => None,
            };
            print(session, exists, lease, owner.as_deref(), args.call.format, &mut lines);
        }
        output.write(lines).await?;
    }
    Ok(if all { Exit::Done } else { Exit::No })
}

/// Returns the owner of a lease, looked up once through one of its sessions. `None` if the session has left the lease
/// in the meantime.
async fn owner_of(
    client: &Client,
    session: SessionKey,
    lease: LeaseId,
    owners: &mut HashMap<LeaseId, String>,
) -> Result<Option<String>, ClientError> {
    if !owners.contains_key(&lease)
        && let Some(holder) = client.lookup(session).await?.lease
    {
        owners.insert(holder.id, holder.owner);
    }
    Ok(owners.get(&lease).cloned())
}

fn print(
    session: SessionKey,
    exists: bool,
    lease: Option<LeaseId>,
    owner: Option<&str>,
    format: Format,
    out: &mut String,
) {
    match format {
        Format::Text => {
            let text = match (exists, lease) {
                (false, _) => "missing".to_owned(),
                (true, None) => "under no lease".to_owned(),
                (true, Some(lease)) => format!("{lease} {}", owner.unwrap_or_default()),
            };
            // Writing to a `String` cannot fail.
            let line = format!("{} {text}", session.session_id);
            let _ = writeln!(out, "{}", line.trim_end());
        }
        Format::Json => {
            let line = JsonLine::begin(out)
                .int64("session_id", session.session_id)
                .int64("auth_key_id", session.auth_key_id)
                .plain("exists", exists);
            match lease {
                Some(lease) => line.int64("lease_id", lease).text("owner", owner.unwrap_or_default()).end(),
                None => line.end(),
            }
        }
    }
}
