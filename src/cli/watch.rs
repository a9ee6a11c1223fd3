//! The `watch` command.

mod lines;

use std::time::Duration;

use clap::{Args, ValueEnum, builder::FalseyValueParser};
use sessiond::{
    client::{EventType, WatchOptions, WatchStart},
    session::{AuthKeyId, LeaseId, SessionId},
};

use super::{
    connect::{AddrArgs, parse_duration},
    exit::{CliError, Exit, print_status},
    format::Format,
    output::Output,
    signal::Signals,
};

/// How long a reader of standard output may take to read the last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

const AFTER_HELP: &str = "\
Text lines have these columns: what happened (exists, created, destroyed, moved), the session id, the auth key id, and \
why a session was destroyed. With --placements, a line ends with lease=ID if the session is under a lease, or was when \
it was destroyed, and with from=ID if it moved from another lease. The state of the connection is reported on standard \
error.

JSON lines have a member \"type\": subscribed, snapshot (an existing session), synced, created, destroyed, moved, \
heartbeat, reset, disconnected. Ids are strings. Each line after which --after can resume has a \"cursor\". Events are \
sent in messages, and a cursor is the place after a whole message, so only the last line of a message has one. After a \
reset, discard what you hold: a full snapshot follows, up to synced.

With --placements, the JSON lines of sessions have \"lease_id\" and \"previous_lease_id\", unless there is no such \
lease. \"places\" has the place in each partition of the change log on subscribed, synced and heartbeat, and the place \
of the event on the last line of a message of events.

If the server cannot be reached, the command retries until it can.";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct WatchArgs {
    /// Starts with the sessions that exist.
    #[arg(long, env = "SESSIOND_SNAPSHOT", conflicts_with = "after", value_parser = FalseyValueParser::new())]
    snapshot: bool,

    /// Resumes after this cursor, which an earlier watch printed.
    #[arg(long, env = "SESSIOND_AFTER", value_name = "CURSOR")]
    after: Option<String>,

    /// Shows only this session, under any auth key. Repeat the flag for several; in the environment, separate them with
    /// commas.
    #[arg(long, env = "SESSIOND_SESSION", value_name = "ID", value_delimiter = ',', allow_negative_numbers = true)]
    session: Vec<SessionId>,

    /// Shows only sessions of this auth key. Repeat the flag for several; in the environment, separate them with
    /// commas.
    #[arg(long, env = "SESSIOND_AUTH_KEY", value_name = "K", value_delimiter = ',', allow_negative_numbers = true)]
    auth_key: Vec<AuthKeyId>,

    /// Also shows where sessions are: the lease of each session, and moves from one lease to another.
    #[arg(long, env = "SESSIOND_PLACEMENTS", value_parser = FalseyValueParser::new())]
    placements: bool,

    /// Shows only sessions under this lease, and those that move to it or away from it. Implies --placements. Repeat
    /// the flag for several; in the environment, separate them with commas.
    #[arg(long, env = "SESSIOND_LEASE", value_name = "LEASE_ID", value_delimiter = ',')]
    lease: Vec<LeaseId>,

    /// Shows only this kind of change. Does not filter the snapshot.
    #[arg(long, env = "SESSIOND_TYPE", value_enum, value_delimiter = ',')]
    r#type: Vec<ChangeType>,

    /// How long the stream may be quiet before the server sends a heartbeat: 100ms to 1h. After three missed heartbeats
    /// the command reconnects.
    #[arg(long, env = "SESSIOND_HEARTBEAT", value_name = "DURATION", default_value = "15s")]
    #[arg(value_parser = parse_duration)]
    heartbeat: Duration,

    /// The format of the printed lines.
    #[arg(long, env = "SESSIOND_FORMAT", value_enum, default_value = "text")]
    format: Format,

    #[command(flatten)]
    addr: AddrArgs,

    /// How long opening the stream may take, including connecting.
    #[arg(long, env = "SESSIOND_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    timeout: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ChangeType {
    /// Sessions that are created.
    Created,
    /// Sessions that are destroyed.
    Destroyed,
    /// Sessions that move to another lease. Implies --placements.
    Moved,
}

impl WatchArgs {
    fn options(&self) -> WatchOptions {
        let start = match &self.after {
            Some(cursor) => WatchStart::After(cursor.clone()),
            None if self.snapshot => WatchStart::Snapshot,
            None => WatchStart::Now,
        };
        let options = WatchOptions::from_start(start)
            .session_ids(self.session.iter().copied())
            .auth_key_ids(self.auth_key.iter().copied())
            .lease_ids(self.lease.iter().copied())
            .types(self.r#type.iter().map(|r#type| match r#type {
                ChangeType::Created => EventType::Created,
                ChangeType::Destroyed => EventType::Destroyed,
                ChangeType::Moved => EventType::Moved,
            }))
            .heartbeat(self.heartbeat);
        if self.placements { options.placements() } else { options }
    }
}

pub(crate) async fn run(args: WatchArgs) -> Result<Exit, CliError> {
    let output = Output::stdout()?;
    let mut place = None;
    let result = watch(&args, &output, &mut place).await;
    // An interrupt must not wait for a reader that hangs.
    let Ok(result) = tokio::time::timeout(FLUSH_TIMEOUT, output.finish(result)).await else {
        return Ok(Exit::Done);
    };
    if let (Format::Text, Some(cursor)) = (args.format, place) {
        print_status(&format!("stopped; resume with --after {cursor}"));
    }
    result
}

/// Prints updates until a signal arrives. `place` is the cursor after the last update that was printed.
async fn watch(args: &WatchArgs, output: &Output, place: &mut Option<String>) -> Result<Exit, CliError> {
    let mut signals = Signals::listen()?;
    let mut watch = args.addr.client(args.timeout)?.watch(args.options());
    loop {
        let update = tokio::select! {
            () = signals.next() => return Ok(Exit::Done),
            () = output.closed() => return Ok(Exit::Done),
            update = watch.next() => update.map_err(|error| args.addr.error(&error))?,
        };
        let mut chunk = String::new();
        match args.format {
            Format::Text => {
                lines::text(&update, &mut chunk);
                if let Some(status) = lines::status(&update, args.addr.as_str()) {
                    print_status(&status);
                }
            }
            Format::Json => lines::json(&update, watch.cursor(), watch.places(), &mut chunk),
        }
        tokio::select! {
            () = signals.next() => return Ok(Exit::Done),
            written = output.write(chunk) => written?,
        }
        *place = watch.cursor().map(str::to_owned);
    }
}
