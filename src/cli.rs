//! The command line: one binary with a subcommand for each task.

mod backup;
mod bench;
mod call;
mod connect;
mod credentials;
mod exit;
mod format;
mod health;
mod ids;
mod lease;
mod lookup;
mod memory;
#[cfg_attr(not(feature = "otlp"), path = "cli/without_otlp.rs")]
mod otlp;
mod output;
mod serve;
mod sessions;
mod signal;
mod telemetry;
mod token;
mod usage;
mod watch;

use std::{env, ffi::OsString, future::Future, process::ExitCode};

use clap::{Parser, Subcommand};
use tokio::runtime;

use self::{
    exit::{CliError, Exit},
    sessions::Verb,
};

/// Session registry for a fleet of gateways: which client sessions exist, where they are, and a stream of changes.
///
/// Without a command, sessiond runs `serve`: `sessiond --listen ADDR` means `sessiond serve --listen ADDR`. Every flag
/// has an environment variable: SESSIOND_ and the flag's name in capitals.
#[derive(Debug, Parser)]
#[command(name = "sessiond", version, after_help = exit::help(), subcommand_required = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the service. This is the default command.
    Serve(Box<serve::ServeArgs>),
    /// Creates sessions.
    ///
    /// Prints one line per session, which says whether this call created it or it existed already.
    Create(sessions::CreateArgs),
    /// Checks whether sessions exist.
    ///
    /// Prints one line per session. Exits with 1 if any session is missing.
    Has(sessions::SessionsArgs),
    /// Looks up which gateway holds sessions.
    ///
    /// Prints the lease and owner of each session. Exits with 1 if any session is missing.
    Lookup(sessions::SessionsArgs),
    /// Destroys sessions.
    ///
    /// Prints one line per session, which says whether this call destroyed it or it did not exist.
    Destroy(sessions::DestroyArgs),
    /// Grants, keeps alive, revokes and lists leases.
    #[command(subcommand)]
    Lease(lease::LeaseCommand),
    /// Prints sessions as they are created and destroyed, until it is interrupted.
    Watch(watch::WatchArgs),
    /// Checks whether the server is serving, for container health checks and probes.
    ///
    /// Exits with 0 if grpc.health.v1 answers SERVING. Otherwise, or if the server cannot be reached, prints the reason
    /// and exits with 1.
    Health(health::HealthArgs),
    Bench(bench::BenchArgs),
    /// Creates tokens, which identify clients to the server.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Copies the file of a registry, even while a server uses it.
    ///
    /// The copy contains every change that was answered before it began. Run it on the server's machine, as a user who
    /// may read and write the file.
    Backup(backup::BackupArgs),
}

/// Runs the program.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::try_parse_from(with_default_command(env::args_os().collect()))
        .unwrap_or_else(|error| usage::without_passwords(error).exit());
    match cli.command.run() {
        Ok(exit) => exit.into(),
        Err(error) => error.report(),
    }
}

impl Command {
    fn run(self) -> Result<Exit, CliError> {
        match self {
            Self::Serve(args) => block_on(serve::run(*args)),
            Self::Create(args) => block_on(sessions::run(args.sessions, Verb::create(args.lease, args.only_from))),
            Self::Has(args) => block_on(sessions::run(args, Verb::Has)),
            Self::Lookup(args) => block_on(lookup::run(args)),
            Self::Destroy(args) => block_on(sessions::run(args.sessions, Verb::Destroy(args.lease))),
            Self::Lease(command) => block_on(lease::run(command)),
            Self::Watch(args) => block_on(watch::run(args)),
            Self::Health(args) => block_on(health::run(args)),
            Self::Token(command) => block_on(token::run(command)),
            Self::Bench(args) => block_on(bench::run(args)),
            Self::Backup(args) => backup::run(&args),
        }
    }
}

/// Inserts `serve` if the arguments name no command.
///
/// Flattening the flags of `serve` into the top-level command would not do: clap would then read their environment
/// variables for every command, and `sessiond has` would fail because of an invalid SESSIOND_LISTEN.
fn with_default_command(mut args: Vec<OsString>) -> Vec<OsString> {
    let serves = match args.get(1).and_then(|arg| arg.to_str()) {
        Some("-h" | "--help" | "-V" | "--version") => false,
        Some(arg) => arg.starts_with('-'),
        None => args.len() < 2,
    };
    if serves {
        args.insert(args.len().min(1), "serve".into());
    }
    args
}

/// Runs a command on this thread. That is enough for a client; in a server this thread is the first worker.
fn block_on(command: impl Future<Output = Result<Exit, CliError>>) -> Result<Exit, CliError> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        CliError::new(Exit::No, format!("cannot start: {error}: check the resource limits of this process"))
    })?;
    let result = runtime.block_on(command);
    // A DNS lookup that hangs must not keep the program from exiting.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(args: &[&str]) -> Result<Command, clap::Error> {
        let args = args.iter().map(OsString::from).collect();
        Cli::try_parse_from(with_default_command(args)).map(|cli| cli.command)
    }

    #[test]
    fn command_line_definition_is_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_is_the_default_command() {
        for args in [&["sessiond"][..], &["sessiond", "--listen", "127.0.0.1:0"], &["sessiond", "serve"]] {
            assert!(matches!(parse(args), Ok(Command::Serve(_))), "{args:?}");
        }
        assert!(matches!(parse(&["sessiond", "has", "1"]), Ok(Command::Has(_))));
        for args in [["sessiond", "--help"], ["sessiond", "-V"], ["sessiond", "nonsense"]] {
            assert!(parse(&args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn every_flag_has_an_environment_variable_and_a_help_text() {
        let mut commands: Vec<_> = Cli::command().get_subcommands().cloned().collect();
        while let Some(command) = commands.pop() {
            commands.extend(command.get_subcommands().cloned());
            for arg in command.get_arguments().filter(|arg| !arg.is_positional()) {
                let flag = arg.get_long().expect("a long name");
                if flag == "help" {
                    continue;
                }
                let variable = format!("SESSIOND_{}", flag.to_uppercase().replace('-', "_"));
                let name = command.get_name();
                assert_eq!(arg.get_env(), Some(variable.as_ref()), "{name} --{flag}");
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.len() > 10, "{name} --{flag} {help:?}");
            }
        }
    }
}
