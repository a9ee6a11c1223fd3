//! The `bench` command.

mod caller;
mod check;
mod connection;
mod cpu;
mod failure;
mod fields;
mod frames;
mod latency;
mod message;
mod mix;
mod observer;
mod pace;
mod plan;
mod progress;
mod report;
mod ring;
mod run;
mod run_stats;
mod stamps;
mod target;
mod timer;
mod worker;

use std::{
    process, thread,
    time::{Duration, Instant},
};

use clap::{Args, value_parser};
use tokio::sync::watch;

use self::{
    mix::Mix,
    plan::{MAX_SESSIONS, Plan, random_auth_key_id},
    report::Report,
    run::{Run, Stop},
    target::Target,
};
use super::{
    connect::{AddrArgs, parse_duration},
    exit::{CliError, Exit, print_status},
    format::Format,
    output::Output,
    signal::Signals,
};

/// How long a call may take that creates or destroys a batch of the run's sessions.
const SETUP_TIMEOUT: Duration = Duration::from_secs(60);

const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

const AFTER_HELP: &str = "\
The sessions are under a random auth key, so other sessions are never touched. Half of them exist when the calls \
begin, and all are destroyed at the end. Ctrl-C ends the run early and still destroys them; a second Ctrl-C does not. \
Each session belongs to one caller, which knows whether it exists. Wrong answers are therefore detected, and so are \
events that are repeated, out of order or missing.

Without --rate, each caller makes its next call when the last one is answered (a closed loop), and latency is the \
duration of a call. With --rate, calls begin at fixed times whatever the server does (an open loop), and latency \
counts from those times, so it includes the time that a call waited because the server was slow. The latency of an \
event counts from the time at which the call that caused it was due.

If the report says that the loader was the bottleneck, the run has measured the loader and not the server.

Exits with 1 if the server broke a promise, and with 3 if calls failed.";

/// Load-tests a server: makes calls as fast as it answers, or at a fixed rate, and prints a report.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    addr: AddrArgs,

    /// The calls to make, as weights of has, create and destroy.
    #[arg(long, env = "SESSIOND_CALLS", value_name = "MIX", default_value = "has=80,create=10,destroy=10")]
    calls: Mix,

    /// Number of connections that make calls.
    #[arg(long, env = "SESSIOND_CONNECTIONS", value_name = "N", default_value = "10",
        value_parser = value_parser!(u32).range(1..=10_000))]
    connections: u32,

    /// Maximum number of calls in flight on each connection.
    #[arg(long, env = "SESSIOND_IN_FLIGHT", value_name = "N", default_value = "10",
        value_parser = value_parser!(u32).range(1..=1_000))]
    in_flight: u32,

    /// Number of sessions per call. With 1 the calls are unary, with more they are batches.
    #[arg(long, env = "SESSIOND_BATCH", value_name = "N", default_value = "1",
        value_parser = value_parser!(u32).range(1..=65_536))]
    batch: u32,

    /// Number of sessions, of which about half exist at any time [default: 100000, or more if many calls are in
    /// flight].
    #[arg(long, env = "SESSIOND_SESSIONS", value_name = "N",
        value_parser = value_parser!(u32).range(2..=i64::from(MAX_SESSIONS)))]
    sessions: Option<u32>,

    /// Number of observers that receive every change.
    #[arg(long, env = "SESSIOND_OBSERVERS", value_name = "N", default_value = "0",
        value_parser = value_parser!(u32).range(0..=100_000))]
    observers: u32,

    /// Number of observers that share a connection.
    #[arg(long, env = "SESSIOND_OBSERVERS_PER_CONNECTION", value_name = "N", default_value = "1",
        value_parser = value_parser!(u32).range(1..=1_000))]
    observers_per_connection: u32,

    /// How long to measure. For more than 25 minutes, start the server with --max-connection-age off.
    #[arg(long, env = "SESSIOND_DURATION", value_name = "DURATION", default_value = "10s", value_parser = parse_span)]
    duration: Duration,

    /// How long to make calls before measuring; 0s for no warm-up.
    #[arg(long, env = "SESSIOND_WARMUP", value_name = "DURATION", default_value = "1s", value_parser = parse_warmup)]
    warmup: Duration,

    /// Calls per second over all connections, made whether or not earlier ones are answered [default: as many as are
    /// answered].
    #[arg(long, env = "SESSIOND_RATE", value_name = "CALLS", value_parser = value_parser!(u32).range(1..=10_000_000))]
    rate: Option<u32>,

    /// Number of threads that the loader uses [default: half of the cores that this process may use].
    #[arg(long, env = "SESSIOND_THREADS", value_name = "N", value_parser = value_parser!(u32).range(1..=256))]
    threads: Option<u32>,

    /// The format of the report.
    #[arg(long, env = "SESSIOND_FORMAT", value_enum, default_value = "text")]
    format: Format,
}

fn parse_span(text: &str) -> Result<Duration, String> {
    let span = parse_duration(text)?;
    if span <= MAX_DURATION { Ok(span) } else { Err("longer than a day: use 24h or less".to_owned()) }
}

fn parse_warmup(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Ok(Duration::ZERO),
        _ => parse_span(text),
    }
}

impl BenchArgs {
    fn plan(&self) -> Result<Plan, CliError> {
        let cores = thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        let default_sessions = || Plan::default_sessions(self.connections, self.in_flight, self.batch);
        let plan = Plan {
            target: Target::new(self.addr.as_str(), &self.addr.credentials()?)?,
            auth_key_id: random_auth_key_id(),
            mix: self.calls,
            connections: self.connections,
            in_flight: self.in_flight,
            batch: self.batch,
            sessions: self.sessions.unwrap_or_else(default_sessions),
            observers: self.observers,
            observers_per_connection: self.observers_per_connection,
            duration: self.duration,
            warmup: self.warmup,
            rate: self.rate,
            threads: self.threads.unwrap_or((cores / 2).max(1)),
        };
        plan.check()?;
        Ok(plan)
    }
}

pub(crate) async fn run(args: BenchArgs) -> Result<Exit, CliError> {
    let plan = args.plan()?;
    let output = Output::stdout()?;
    let result = bench(&args, plan, &output).await;
    output.finish(result).await
}

async fn bench(args: &BenchArgs, plan: Plan, output: &Output) -> Result<Exit, CliError> {
    let client = args.addr.client(SETUP_TIMEOUT)?;
    let auth_key_id = plan.auth_key_id;
    let stop = stop_by_signal(auth_key_id)?;
    let mut run = Run::new(plan, stop);

    let measured = match run.fill(&client).await {
        Ok(true) => run.measure().await,
        Ok(false) => Ok(None),
        Err(error) => Err(args.addr.error(&error)),
    };
    let cleaned = run.clean_up(&client).await;
    drop(run);
    let report = measured?;
    if let Some(report) = &report {
        let text = match args.format {
            Format::Text => report.text(),
            Format::Json => report.json(),
        };
        output.write(text).await?;
    }
    judge(report.as_ref(), cleaned.err().map(|error| args.addr.error(&error)), auth_key_id)
}

/// Returns how the program ends. `uncleaned` is the error that prevented destroying the sessions of the run.
fn judge(report: Option<&Report>, uncleaned: Option<CliError>, auth_key_id: i64) -> Result<Exit, CliError> {
    let error = match report {
        None => Some(CliError::new(Exit::No, "interrupted before the run began")),
        Some(report) => (report.broken_promise().map(|broken| CliError::new(Exit::No, broken)))
            .or_else(|| report.trouble().map(|trouble| CliError::new(Exit::Server, trouble))),
    };
    let left = format!("the sessions under auth key {auth_key_id} are left behind");
    match (error, uncleaned) {
        (None, None) => Ok(Exit::Done),
        (Some(error), None) => Err(error),
        (None, Some(uncleaned)) => Err(uncleaned.with_note(&left)),
        (Some(error), Some(_)) => Err(error.with_note(&left)),
    }
}

/// Stops the run at the first signal, and exits at the second.
fn stop_by_signal(auth_key_id: i64) -> Result<watch::Sender<Option<Stop>>, CliError> {
    let mut signals = Signals::listen()?;
    let (stop, _) = watch::channel(None);
    let stops = stop.clone();
    tokio::spawn(async move {
        signals.next().await;
        stops.send_if_modified(|stop| {
            let first = stop.is_none();
            stop.get_or_insert_with(|| Stop { at: Instant::now(), interrupted: true });
            first
        });
        signals.next().await;
        print_status(&format!("exiting immediately: the sessions under auth key {auth_key_id} are left behind"));
        process::exit(Exit::No as i32);
    });
    Ok(stop)
}
