//! `health`.

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
    /// The service to ask about, such as sessiond.v1.SessionService. Empty for the server as a whole.
    #[arg(long, env = "SESSIOND_SERVICE", value_name = "NAME", default_value = "", hide_default_value = true)]
    service: String,

    #[command(flatten)]
    addr: AddrArgs,

    /// How long the answer may take, connecting included.
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
            return no(format!("{} has no service {:?}: see --service", args.addr.as_str(), args.service));
        }
        // Probes read 1 as "no": that a server cannot be asked is no more to them.
        Ok(Err(status)) => return Err(args.addr.error(&ClientError::from(status)).with_exit(Exit::No)),
        Err(_) => {
            return Err(args.addr.error(&ClientError::Timeout { after: args.timeout }).with_exit(Exit::No));
        }
    };
    if status != ServingStatus::Serving {
        return no(format!("{} answers {}: see its log", args.addr.as_str(), status.as_str_name()));
    }
    let output = Output::stdout()?;
    let written = output.write("SERVING\n".to_owned()).await;
    output.finish(written.map(|()| Exit::Done)).await
}
