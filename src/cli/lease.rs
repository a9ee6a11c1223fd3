//! `lease`.

use std::time::Duration;

use clap::{Args, Subcommand, builder::FalseyValueParser};
use sessiond::{
    client::{Client, ClientError, LeaseGrant},
    session::LeaseId,
};
use tokio::time::sleep;

use super::{
    connect::{AddrArgs, parse_duration},
    exit::{CliError, Exit, print_status},
    format::{Format, JsonLine},
    output::Output,
    signal::Signals,
};

/// A server that grants no time at all is not asked without pause.
const SHORTEST_TURN: Duration = Duration::from_millis(100);
/// The longest wait before a lease that is held is tried to be kept alive again.
const LONGEST_RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
pub(crate) enum LeaseCommand {
    /// Grants a lease and prints its id.
    ///
    /// A lease that is not kept alive for its ttl expires, and the sessions under it are destroyed.
    Grant(GrantArgs),
    /// Lets a lease live for its whole ttl from now on.
    ///
    /// Prints one line each time. Exits with 1 when the lease is gone.
    KeepAlive(KeepAliveArgs),
    /// Ends a lease and destroys the sessions under it.
    ///
    /// Prints how many sessions those were. Exits with 1 when the lease is gone already.
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct GrantArgs {
    /// How long the lease lives without being kept alive: 1s to 24h.
    #[arg(long, env = "SESSIOND_TTL", value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    ttl: Duration,

    /// Who holds the lease, as a label for people: at most 128 bytes.
    #[arg(long, env = "SESSIOND_OWNER", value_name = "NAME", default_value = "", hide_default_value = true)]
    owner: String,

    #[command(flatten)]
    call: CallArgs,
}

#[derive(Debug, Args)]
pub(crate) struct KeepAliveArgs {
    /// The id of the lease.
    #[arg(value_name = "LEASE_ID")]
    lease: LeaseId,

    /// Keeps the lease alive until this command is interrupted or the lease is gone, three times in each ttl. Where the
    /// server cannot be reached, it is tried again until it can. The lease is not revoked at the end.
    #[arg(long, env = "SESSIOND_HOLD", value_parser = FalseyValueParser::new())]
    hold: bool,

    #[command(flatten)]
    call: CallArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    /// The id of the lease.
    #[arg(value_name = "LEASE_ID")]
    lease: LeaseId,

    #[command(flatten)]
    call: CallArgs,
}

#[derive(Debug, Args)]
struct CallArgs {
    /// The form of the lines that are printed.
    #[arg(long, env = "SESSIOND_FORMAT", value_enum, default_value = "text")]
    format: Format,

    #[command(flatten)]
    addr: AddrArgs,

    /// How long each call may take, connecting included.
    #[arg(long, env = "SESSIOND_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    timeout: Duration,
}

pub(crate) async fn run(command: LeaseCommand) -> Result<Exit, CliError> {
    let output = Output::stdout()?;
    let result = match command {
        LeaseCommand::Grant(args) => grant(&args, &output).await,
        LeaseCommand::KeepAlive(args) if args.hold => hold(&args, &output).await,
        LeaseCommand::KeepAlive(args) => keep_alive(&args, &output).await,
        LeaseCommand::Revoke(args) => revoke(&args, &output).await,
    };
    output.finish(result.map(|()| Exit::Done)).await
}

async fn grant(args: &GrantArgs, output: &Output) -> Result<(), CliError> {
    let GrantArgs { ttl, owner, call } = args;
    let LeaseGrant { id, ttl } = call.client()?.grant_lease(*ttl, owner).await.map_err(|error| call.error(&error))?;
    output
        .write(call.line(
            // Nothing else, so that `LEASE=$(sessiond lease grant)` works.
            || format!("{id}\n"),
            |line| line.int64("lease_id", id).plain("ttl_ms", ttl.as_millis()),
        ))
        .await
}

async fn keep_alive(args: &KeepAliveArgs, output: &Output) -> Result<(), CliError> {
    let KeepAliveArgs { lease, call, .. } = args;
    let ttl = call.client()?.keep_lease_alive(*lease).await.map_err(|error| call.error(&error))?;
    output.write(kept_alive(args, ttl)).await
}

async fn hold(args: &KeepAliveArgs, output: &Output) -> Result<(), CliError> {
    let KeepAliveArgs { lease, call, .. } = args;
    let mut signals = Signals::listen()?;
    let mut client = call.client()?;
    let keep = async {
        let mut retry = LONGEST_RETRY;
        loop {
            let wait = match client.keep_lease_alive(*lease).await {
                Ok(ttl) => {
                    output.write(kept_alive(args, ttl)).await?;
                    let turn = (ttl / 3).max(SHORTEST_TURN);
                    retry = LONGEST_RETRY.min(turn / 3);
                    turn
                }
                Err(error) if error.is_retryable() => {
                    print_status(&format!("{error}: trying {} again in {retry:?}", call.addr.as_str()));
                    // The connection may be dead without either end knowing.
                    client = call.client()?;
                    retry
                }
                Err(error) => return Err(call.error(&error)),
            };
            sleep(wait).await;
        }
    };
    tokio::select! {
        ended = keep => ended,
        () = signals.next() => Ok(()),
        () = output.closed() => Ok(()),
    }
}

async fn revoke(args: &RevokeArgs, output: &Output) -> Result<(), CliError> {
    let RevokeArgs { lease, call } = args;
    let destroyed = call.client()?.revoke_lease(*lease).await.map_err(|error| call.error(&error))?;
    output
        .write(call.line(
            || {
                format!(
                    "{lease} revoked, {destroyed} {} destroyed\n",
                    if destroyed == 1 { "session" } else { "sessions" }
                )
            },
            |line| line.int64("lease_id", lease).int64("sessions_destroyed", destroyed),
        ))
        .await
}

fn kept_alive(KeepAliveArgs { lease, call, .. }: &KeepAliveArgs, ttl: Duration) -> String {
    call.line(
        || format!("{lease} lives for {}\n", humantime::format_duration(ttl)),
        |line| line.int64("lease_id", lease).plain("ttl_ms", ttl.as_millis()),
    )
}

impl CallArgs {
    fn client(&self) -> Result<Client, CliError> {
        self.addr.client(self.timeout)
    }

    fn error(&self, error: &ClientError) -> CliError {
        self.addr.error(error)
    }

    fn line(&self, text: impl FnOnce() -> String, json: impl FnOnce(JsonLine<'_>) -> JsonLine<'_>) -> String {
        match self.format {
            Format::Text => text(),
            Format::Json => {
                let mut out = String::new();
                json(JsonLine::begin(&mut out)).end();
                out
            }
        }
    }
}
