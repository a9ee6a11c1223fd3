//! `token`.

use clap::{Args, Subcommand};
use sessiond::access::{NewToken, Scopes, TokenError};

use super::{
    exit::{CliError, Exit, print_status},
    output::Output,
};

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Makes a token, and prints it and the line for the server's access file.
    ///
    /// The token is on the first line of standard output, and is nowhere else: who has it is who it names. The second line
    /// goes into the file of --access-file, and gives nothing away.
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
}

pub(crate) async fn run(command: TokenCommand) -> Result<Exit, CliError> {
    let TokenCommand::New(args) = command;
    let token = NewToken::generate(&args.name).map_err(|error| match error {
        TokenError::BadName(_) => CliError::new(Exit::Usage, error),
        _ => CliError::new(Exit::No, error),
    })?;
    let output = Output::stdout()?;
    let written = output.write(format!("{}\n{}\n", token.token(), token.line(args.scopes))).await;
    print_status("the first line is the token, shown this once; the second is for the server's --access-file");
    output.finish(written.map(|()| Exit::Done)).await
}
