//! The `health` command.

use std::time::Duration;

use clap::Args;
use sessiond::client::ClientError;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{
    connect::{AddrArgs, parse_duration},
    exit::{CliError, Exit},
    output::Output,
};

#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    /// The service to check, such as sessiond.v1.SessionService. Empty for the whole server.
    #[arg(long, env = "SESSIOND_SERVICE", value_name = "NAME", default_value = "", hide_default_value = true)]
    service: String,

    #[command(flatten)]
    addr: AddrArgs,

    /// How long the answer may take, including connecting.
    #[arg(long, env = "SESSIOND_TIMEOUT", value_name = "DURATION", default_value = "2s", value_parser = parse_duration)]
    timeout: Duration,
}

pub(crate) async fn run(args: HealthArgs) -> Result<Exit, CliError> {
    let mut health = HealthClient::new(args.addr.client(args.timeout)?.channel());
    let request = HealthCheckRequest { service: args.service.clone() };
    let no = |message: String| Err(CliError::new(Exit::No, message));
    let status = match tokio::time::timeout(args.timeout, health.check(request)).await {
        Ok(Ok(answer)) => answer.into_inner().status(),
        Ok(Err(status)) if status.code() == Code::NotFound => {
            return no(format!("{} has no service {:?}: check --service", args.addr.as_str(), args.service));
        }
        // Probes read 1 as "no", and so must they read a server that cannot be reached.
        Ok(Err(status)) => return Err(args.addr.error(&ClientError::from(status)).with_exit(Exit::No)),
        Err(_) => {
            return Err(args.addr.error(&ClientError::Timeout { after: args.timeout }).with_exit(Exit::No));
        }
    };
    if status != ServingStatus::Serving {
        return no(format!("{} answered {}: see its log", args.addr.as_str(), status.as_str_name()));
    }
    let output = Output::stdout()?;
    let written = output.write("SERVING\n".to_owned()).await;
    output.finish(written.map(|()| Exit::Done)).await
}
