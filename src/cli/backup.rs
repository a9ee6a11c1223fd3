//! `backup`.

use std::path::PathBuf;

use clap::Args;
use sessiond::storage::file;

use super::exit::{CliError, Exit};

#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// The file of the registry: what stands behind file: in --storage.
    path: PathBuf,

    /// Where the copy goes. There must be no such file.
    out: PathBuf,
}

pub(crate) fn run(args: &BackupArgs) -> Result<Exit, CliError> {
    file::backup(&args.path, &args.out).map_err(|error| CliError::new(Exit::Storage, error))?;
    Ok(Exit::Done)
}
