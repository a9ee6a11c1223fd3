//! The `lease` commands.

use std::{collections::HashSet, time::Duration};

use clap::{Args, Subcommand, builder::FalseyValueParser};
use sessiond::{
    client::{LeaseGrant, LeaseQuery, LeaseStatus},
    session::LeaseId,
};
use tokio::time::sleep;

use super::{
    call::CallArgs,
    connect::parse_duration,
    exit::{CliError, Exit, print_status},
    output::Output,
    signal::Signals,
};

/// The shortest pause between keep-alives, in case a server grants a ttl of 0.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
/// The longest pause before a failed keep-alive is retried.
const LONGEST_RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
pub(crate) enum LeaseCommand {
    /// Grants a lease and prints its id.
    ///
    /// If the lease is not kept alive for its ttl, it expires, and the sessions under it are destroyed.
    Grant(GrantArgs),
    /// Extends a lease to its full ttl from now.
    ///
    /// Prints one line each time. Exits with 1 if the lease is gone.
    KeepAlive(KeepAliveArgs),
    /// Ends a lease and destroys the sessions under it.
    ///
    /// Prints how many sessions were destroyed. Exits with 1 if the lease is already gone.
    Revoke(RevokeArgs),
    /// Lists the leases that have not ended, ordered by id.
    ///
    /// Prints one line per lease: its owner, how many sessions it has, and when it ends unless it is kept alive. Exits
    /// with 1 if you name leases and one of them is gone.
    List(ListArgs),
}

#[derive(Debug, Args)]
pub(crate) struct GrantArgs {
    /// How long the lease lives without being kept alive: 1s to 24h.
    #[arg(long, env = "SESSIOND_TTL", value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    ttl: Duration,

    /// The owner of the lease, at most 128 bytes: by convention the address at which the gateway can be reached.
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

    /// Keeps the lease alive, three times per ttl, until this command is interrupted or the lease is gone. Retries
    /// while the server cannot be reached. Does not revoke the lease at the end.
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

    /// Lets the lease linger for this time, up to 1h, before it ends. Until then its sessions can move to other leases,
    /// and it accepts no new ones.
    #[arg(long, env = "SESSIOND_LINGER", value_name = "DURATION", value_parser = parse_duration)]
    linger: Option<Duration>,

    #[command(flatten)]
    call: CallArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// List only these leases.
    #[arg(value_name = "LEASE_ID")]
    leases: Vec<LeaseId>,

    /// List only leases with exactly this owner.
    #[arg(long, env = "SESSIOND_OWNER", value_name = "NAME", default_value = "", hide_default_value = true)]
    owner: String,

    #[command(flatten)]
    call: CallArgs,
}

pub(crate) async fn run(command: LeaseCommand) -> Result<Exit, CliError> {
    let output = Output::stdout()?;
    let result = match command {
        LeaseCommand::List(args) => list(args, &output).await,
        LeaseCommand::Grant(args) => grant(&args, &output).await.map(|()| Exit::Done),
        LeaseCommand::KeepAlive(args) if args.hold => hold(&args, &output).await.map(|()| Exit::Done),
        LeaseCommand::KeepAlive(args) => keep_alive(&args, &output).await.map(|()| Exit::Done),
        LeaseCommand::Revoke(args) => revoke(&args, &output).await.map(|()| Exit::Done),
    };
    output.finish(result).await
}

async fn grant(args: &GrantArgs, output: &Output) -> Result<(), CliError> {
    let GrantArgs { ttl, owner, call } = args;
    let LeaseGrant { id, ttl } = call.client()?.grant_lease(*ttl, owner).await.map_err(|error| call.error(&error))?;
    output
        .write(call.line(
            // Only the id, so that `LEASE=$(sessiond lease grant)` works.
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
                    let interval = (ttl / 3).max(SHORTEST_INTERVAL);
                    retry = LONGEST_RETRY.min(interval / 3);
                    interval
                }
                Err(error) if error.is_retryable() => {
                    print_status(&format!("{error}: retrying {} in {retry:?}", call.addr()));
                    // The connection may be dead without either end having noticed.
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
    let RevokeArgs { lease, linger, call } = args;
    if let Some(linger) = linger.filter(|linger| !linger.is_zero()) {
        call.client()?.linger_lease(*lease, linger).await.map_err(|error| call.error(&error))?;
        let line = call.line(
            || format!("{lease} lingers and ends within {}\n", humantime::format_duration(linger)),
            |line| line.int64("lease_id", lease).plain("linger_ms", linger.as_millis()),
        );
        return output.write(line).await;
    }
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

/// Formats the remaining time of a listed lease, in whole seconds.
fn seconds(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(duration.as_secs()))
}

async fn list(args: ListArgs, output: &Output) -> Result<Exit, CliError> {
    let ListArgs { leases, owner, call } = args;
    let client = call.client()?;
    let mut query = LeaseQuery { owner, lease_ids: leases, page_size: 10_000, ..LeaseQuery::default() };
    let mut missing: HashSet<LeaseId> = query.lease_ids.iter().copied().collect();
    loop {
        let page = client.list_leases(query.clone()).await.map_err(|error| call.error(&error))?;
        let mut lines = String::new();
        for LeaseStatus { lease, ttl, expires_in, session_count, lingers, .. } in page.leases {
            missing.remove(&lease.id);
            lines += &call.line(
                || {
                    let ends = if lingers { "lingers, ends in" } else { "ends in" };
                    let sessions = if session_count == 1 { "session" } else { "sessions" };
                    let owner = if lease.owner.is_empty() { "-" } else { &lease.owner };
                    format!("{} {owner} {session_count} {sessions}, {ends} {}\n", lease.id, seconds(expires_in))
                },
                |line| {
                    line.int64("lease_id", lease.id)
                        .text("owner", &lease.owner)
                        .int64("session_count", session_count)
                        .plain("ttl_ms", ttl.as_millis())
                        .plain("expires_in_ms", expires_in.as_millis())
                        .plain("lingers", lingers)
                },
            );
        }
        output.write(lines).await?;
        if page.next.is_empty() {
            return Ok(if missing.is_empty() { Exit::Done } else { Exit::No });
        }
        query.page_token = page.next;
    }
}

fn kept_alive(KeepAliveArgs { lease, call, .. }: &KeepAliveArgs, ttl: Duration) -> String {
    call.line(
        || format!("{lease} lives for {}\n", humantime::format_duration(ttl)),
        |line| line.int64("lease_id", lease).plain("ttl_ms", ttl.as_millis()),
    )
}
