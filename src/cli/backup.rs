//! The `backup` command.

use std::path::PathBuf;

use clap::Args;
use sessiond::storage::file;

use super::exit::{CliError, Exit};

#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// The registry's file: the path after file: in --storage.
    path: PathBuf,

    /// Where to write the copy. The file must not exist yet.
    out: PathBuf,
}

pub(crate) fn run(args: &BackupArgs) -> Result<Exit, CliError> {
    file::backup(&args.path, &args.out).map_err(|error| CliError::new(Exit::Storage, error))?;
    Ok(Exit::Done)
}
