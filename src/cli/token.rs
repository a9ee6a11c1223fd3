//! The `token` command.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use sessiond::access::{NewToken, Scopes, TokenError};

use super::{
    exit::{CliError, Exit, print_status},
    output::Output,
};

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Creates a token and its line for the server's access file.
    ///
    /// With --out, writes the token to that file and prints only the line for --access-file, which contains no secret.
    /// Without it, prints the token on the first line and the line for --access-file on the second. The token is stored
    /// nowhere else. Anyone who has it can act as the client that it names.
    New(NewArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NewArgs {
    /// The name of the client, for people and logs: letters, digits, '-', '_' and '.'.
    #[arg(long, env = "SESSIOND_NAME", value_name = "NAME")]
    name: String,

    /// What the client may do, separated by commas: read (look up sessions and leases), write (create and destroy
    /// sessions, manage leases), observe (subscribe), admin (all of these, and server reflection).
    #[arg(long, env = "SESSIOND_SCOPES", value_name = "SCOPES")]
    scopes: Scopes,

    /// The file to write the token to, readable only by your user (mode 0600) and without a trailing newline. It must
    /// not exist yet.
    #[arg(long, env = "SESSIOND_OUT", value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(crate) async fn run(command: TokenCommand) -> Result<Exit, CliError> {
    let TokenCommand::New(args) = command;
    let token = NewToken::generate(&args.name).map_err(|error| match error {
        TokenError::BadName(_) => CliError::new(Exit::Usage, error),
        _ => CliError::new(Exit::No, error),
    })?;
    let line = token.line(args.scopes);
    let (printed, status) = match &args.out {
        Some(path) => {
            write_new(path, token.token())?;
            let status =
                format!("wrote the token to {}; add the printed line to the server's --access-file", path.display());
            (format!("{line}\n"), status)
        }
        None => (
            format!("{}\n{line}\n", token.token()),
            "the first line is the token, shown only this once; add the second to the server's --access-file"
                .to_owned(),
        ),
    };
    let output = Output::stdout()?;
    let written = output.write(printed).await;
    print_status(&status);
    output.finish(written.map(|()| Exit::Done)).await
}

/// Writes a secret to a new file that only this user can read from the start.
fn write_new(path: &Path, secret: &str) -> Result<(), CliError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = opened.and_then(|mut file| {
        file.write_all(secret.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| {
        let advice = if error.kind() == io::ErrorKind::AlreadyExists {
            "the file exists: remove it if its token is no longer used, or choose another file"
        } else {
            "check that its folder exists and is writable"
        };
        CliError::new(Exit::No, format!("cannot write the token to {}: {error}: {advice}", path.display()))
    })
}
