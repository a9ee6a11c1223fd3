//! `token`.

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
    /// Makes a token and the line for the server's access file.
    ///
    /// With --out the token is written to that file, and only the line for --access-file is printed, which gives nothing away.
    /// Otherwise the token is printed on the first line, and that line on the second. The token is nowhere else: who has it is
    /// who it names.
    New(NewArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NewArgs {
    /// Who is to have the token, for people and logs: letters, digits, '-', '_' and '.'.
    #[arg(long, env = "SESSIOND_NAME", value_name = "NAME")]
    name: String,

    /// What the token is good for, with commas between: read (ask for sessions), write (create and destroy them, hold
    /// leases), observe (subscribe to changes), admin (all, and reflection).
    #[arg(long, env = "SESSIOND_SCOPES", value_name = "SCOPES")]
    scopes: Scopes,

    /// The file to write the token to, for your user alone (mode 0600) and without a newline. It must not exist yet.
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
            let status = format!("the token is in {}; the line is for the server's --access-file", path.display());
            (format!("{line}\n"), status)
        }
        None => (
            format!("{}\n{line}\n", token.token()),
            "the first line is the token, shown this once; the second is for the server's --access-file".to_owned(),
        ),
    };
    let output = Output::stdout()?;
    let written = output.write(printed).await;
    print_status(&status);
    output.finish(written.map(|()| Exit::Done)).await
}

/// Writes a secret to a file that did not exist, and that only this user can read from the start.
fn write_new(path: &Path, secret: &str) -> Result<(), CliError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = opened.and_then(|mut file| {
        file.write_all(secret.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| {
        let advice = if error.kind() == io::ErrorKind::AlreadyExists {
            "the file exists: remove it if nobody uses its token, or choose another"
        } else {
            "see whether its folder exists and can be written"
        };
        CliError::new(Exit::No, format!("cannot write the token to {}: {error}: {advice}", path.display()))
    })
}
