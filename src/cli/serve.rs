//! `serve`.

use clap::Args;

use super::exit::{CliError, Exit};

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// The address on which gRPC is served.
    #[arg(long, env = "SESSIOND_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:50051")]
    listen: String,

    /// Where sessions are kept.
    #[arg(long, env = "SESSIOND_STORAGE", value_name = "URL", default_value = "memory:")]
    storage: String,

    /// The address on which metrics and probes are served, in plain HTTP.
    #[arg(long, env = "SESSIOND_ADMIN_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:9090")]
    admin_listen: String,
}

pub(crate) fn run(args: ServeArgs) -> Result<(), CliError> {
    let ServeArgs { listen, storage, admin_listen } = args;
    Err(CliError::new(Exit::No, format!("cannot serve {storage} on {listen} and {admin_listen}: not built yet")))
}
