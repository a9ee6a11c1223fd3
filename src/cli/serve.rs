//! The `serve` command.

use std::{
    cell::OnceCell,
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
    process,
    time::{Duration, Instant},
};

use clap::{Args, value_parser};
use sessiond::{
    server::{
        ConfigFile, ConnectionOptions, Endpoint, ListenAddress, RateLimit, Server, ServerConfig, ServerError,
        StorageWait, TcpAddress, TlsFiles,
    },
    service::ServiceOptions,
    storage::StorageUrl,
    subject::SubjectOptions,
};
use tokio::sync::oneshot;

use super::{
    connect::parse_duration,
    exit::{CliError, Exit},
    memory,
    otlp::{Otlp, OtlpArgs},
    signal::Signals,
    telemetry::{self, LogFormat},
};

const AFTER_HELP: &str = "\
\"Memory\" in a default is the memory that the process may use: the smallest of its container's limit (cgroup version \
1 or 2), its address space limit, and the machine's memory. Where a default gives two values, the smaller one applies. \
The server logs the result at startup.";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ServeArgs {
    /// The address of the gRPC port: HOST:PORT, a name such as localhost:50051, or unix:PATH.
    ///
    /// If a name has several addresses, the server uses the first that it can listen on. The owner and group of a Unix
    /// socket may connect to it.
    #[arg(long, env = "SESSIOND_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:50051")]
    listen: ListenAddress,

    /// The address of the admin port (/metrics, /live, /ready, /writable): HOST:PORT.
    ///
    /// The admin port speaks plain HTTP.
    #[arg(long, env = "SESSIOND_ADMIN_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:9090")]
    admin_listen: TcpAddress,

    /// A PEM file with the server's certificate, followed by its intermediates.
    ///
    /// With it, the gRPC port accepts only TLS 1.2 and 1.3. The server reloads the file within seconds when it changes.
    #[arg(long, env = "SESSIOND_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// A PEM file with the private key of the server's certificate.
    ///
    /// The server reloads the file within seconds when it changes.
    #[arg(long, env = "SESSIOND_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// A PEM file with the root certificates of clients.
    ///
    /// With it, the gRPC port requires a client certificate from one of these roots (mutual TLS). The server reloads
    /// the file within seconds when it changes.
    #[arg(long, env = "SESSIOND_TLS_CLIENT_CA", value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,

    /// A file with the clients that may call, and what each may do: one line per token or client certificate.
    ///
    /// With it, only these clients may call, and only grpc.health.v1 stays open to everyone. Without it, everyone who
    /// can connect may do everything. The server reloads the file within seconds when it changes.
    #[arg(long, env = "SESSIOND_ACCESS_FILE", value_name = "FILE")]
    access_file: Option<PathBuf>,

    /// Maximum calls per second of one client (identified by token, certificate or address) [default: none].
    ///
    /// KeepLeaseAlive is exempt.
    #[arg(long, env = "SESSIOND_RATE_LIMIT", value_name = "CALLS",
        value_parser = value_parser!(u32).range(1..=1_000_000))]
    rate_limit: Option<u32>,

    /// Maximum calls that one client may make together after a quiet time [default: the calls of one second].
    #[arg(long, env = "SESSIOND_RATE_BURST", value_name = "CALLS", requires = "rate_limit",
        value_parser = value_parser!(u32).range(1..=10_000_000))]
    rate_burst: Option<u32>,

    /// Where sessions are kept: memory: is lost with the process, file:PATH survives it, redis://HOST:PORT is shared by
    /// many replicas.
    ///
    /// rediss://HOST:PORT is Redis over TLS. redis+cluster://H1:P1,H2:P2 and rediss+cluster:// are a Redis Cluster.
    /// redis+sentinel://S1:P1,S2:P2,S3:P3/MASTER and rediss+sentinel:// are a master behind Sentinel. The URLs of Redis
    /// take the parameters registry, partitions, buckets, timeout_ms, wait_replicas and wait_timeout_ms, and those of
    /// Sentinel also sentinel_username and sentinel_password.
    #[arg(long, env = "SESSIOND_STORAGE", value_name = "URL", default_value = "memory:", hide_env_values = true)]
    storage: StorageUrl,

    /// How long a starting server waits for a storage that cannot be opened yet [default: forever for Redis, 0 for the
    /// others].
    ///
    /// Give a duration, forever, or 0. While it waits, the server is live but not ready. If waiting cannot help, as
    /// with a wrong password, the server exits immediately.
    #[arg(long, env = "SESSIOND_STORAGE_WAIT", value_name = "DURATION", value_parser = parse_wait)]
    storage_wait: Option<StorageWait>,

    /// Threads that serve connections [default: the number of cores].
    #[arg(long, env = "SESSIOND_WORKERS", value_name = "N")]
    workers: Option<NonZeroUsize>,

    /// Maximum number of events from which observers can resume.
    ///
    /// The storage keeps 24 bytes more for each until it is published.
    #[arg(long, env = "SESSIOND_RETAIN_EVENTS", value_name = "N", default_value = "1048576",
        value_parser = positive())]
    retain_events: u64,

    /// Maximum bytes of those events [default: 256 MiB, or memory / 4].
    #[arg(long, env = "SESSIOND_RETAIN_BYTES", value_name = "BYTES", value_parser = positive())]
    retain_bytes: Option<u64>,

    /// Maximum number of sessions, at most 200,000,000.
    #[arg(long, env = "SESSIOND_MAX_SESSIONS", value_name = "N", default_value = "200000000",
        value_parser = value_parser!(u64).range(1..=200_000_000))]
    max_sessions: u64,

    /// Maximum number of leases.
    #[arg(long, env = "SESSIOND_MAX_LEASES", value_name = "N", default_value = "1000000",
        value_parser = positive())]
    max_leases: u64,

    /// Maximum time that leases get after an outage of the storage, a restart on a file, or a pause of the process. A
    /// lease with a longer ttl gets its ttl.
    ///
    /// After an outage of length T, each lease gets its full ttl again, and at least T + 20 s or this time, whichever
    /// is shorter. The default is this long because gRPC libraries may wait two minutes before they reconnect. A pause
    /// counts if it is longer than 5 s.
    #[arg(long, env = "SESSIOND_OUTAGE_GRACE", value_name = "DURATION", default_value = "150s",
        value_parser = parse_duration)]
    outage_grace: Duration,

    /// Maximum number of observers.
    #[arg(long, env = "SESSIOND_MAX_OBSERVERS", value_name = "N", default_value = "100000",
        value_parser = positive())]
    max_observers: u64,

    /// Maximum number of ids in the filters of one observer.
    #[arg(long, env = "SESSIOND_MAX_FILTER_IDS", value_name = "N", default_value = "4096",
        value_parser = positive())]
    max_filter_ids: u64,

    /// Maximum number of ids in the filters of all observers together [default: memory / 512 bytes, at least 1048576].
    #[arg(long, env = "SESSIOND_MAX_TOTAL_FILTER_IDS", value_name = "N", value_parser = positive())]
    max_total_filter_ids: Option<u64>,

    /// Maximum number of open connections; further ones wait to be accepted.
    #[arg(long, env = "SESSIOND_MAX_CONNECTIONS", value_name = "N", default_value = "100000",
        value_parser = positive())]
    max_connections: u64,

    /// Maximum number of concurrent calls and streams on a connection.
    ///
    /// Further ones wait in the client, and a metric and the log report it.
    #[arg(long, env = "SESSIOND_MAX_STREAMS", value_name = "N", default_value = "1024",
        value_parser = value_parser!(u32).range(1..))]
    max_streams: u32,

    /// Maximum duration of the handshake: TLS and the start of HTTP/2.
    #[arg(long, env = "SESSIOND_HANDSHAKE_TIMEOUT", value_name = "DURATION", default_value = "10s",
        value_parser = parse_duration)]
    handshake_timeout: Duration,

    /// How long a connection may have no call and no stream; a health watch does not count.
    #[arg(long, env = "SESSIOND_IDLE_TIMEOUT", value_name = "DURATION", default_value = "15m",
        value_parser = parse_duration)]
    idle_timeout: Duration,

    /// How long a connection lives (± 10%) before its client is told to reconnect; off for no limit.
    ///
    /// The server sends GOAWAY, so that new replicas get their share of the load. Calls in flight finish. A stream ends
    /// with UNAVAILABLE once it is synced, and resumes from its cursor.
    #[arg(long, env = "SESSIOND_MAX_CONNECTION_AGE", value_name = "DURATION", default_value = "30m",
        value_parser = parse_age)]
    max_connection_age: MaxAge,

    /// How long a connection may be quiet before the server pings it.
    #[arg(long, env = "SESSIOND_KEEPALIVE_INTERVAL", value_name = "DURATION", default_value = "60s",
        value_parser = parse_duration)]
    keepalive_interval: Duration,

    /// How long the answer to a ping may take before the server closes the connection.
    #[arg(long, env = "SESSIOND_KEEPALIVE_TIMEOUT", value_name = "DURATION", default_value = "20s",
        value_parser = parse_duration)]
    keepalive_timeout: Duration,

    /// Maximum size of a request.
    #[arg(long, env = "SESSIOND_MAX_MESSAGE_BYTES", value_name = "BYTES", default_value = "4194304",
        value_parser = value_parser!(u64).range(1024..=1 << 30))]
    max_message_bytes: u64,

    /// Maximum size of all incomplete requests together, counting 1 KiB more for each [default: 1 GiB, or memory / 8].
    #[arg(long, env = "SESSIOND_MAX_PENDING_BYTES", value_name = "BYTES", value_parser = positive())]
    max_pending_bytes: Option<u64>,

    /// Maximum number of sessions in a batch.
    #[arg(long, env = "SESSIOND_MAX_BATCH", value_name = "N", default_value = "65536",
        value_parser = value_parser!(u64).range(1..=65_536))]
    max_batch: u64,

    /// Maximum duration of a call, or of opening a stream; a shorter grpc-timeout is honoured.
    #[arg(long, env = "SESSIOND_CALL_TIMEOUT", value_name = "DURATION", default_value = "30s",
        value_parser = parse_duration)]
    call_timeout: Duration,

    /// Maximum duration of a drain, which SIGTERM, SIGINT or SIGHUP starts. Calls and streams that remain after it are
    /// cut off.
    #[arg(long, env = "SESSIOND_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "10s",
        value_parser = parse_duration)]
    drain_timeout: Duration,

    #[command(flatten)]
    otlp: OtlpArgs,

    /// The format of the log, which goes to standard error.
    #[arg(long, env = "SESSIOND_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,

    /// The events to log: a level, or levels by module, such as warn or info,sessiond::server=debug.
    ///
    /// info,sessiond::call=debug adds a line for each call.
    #[arg(long, env = "SESSIOND_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
}

fn positive() -> clap::builder::RangedU64ValueParser<u64> {
    value_parser!(u64).range(1..)
}

/// The maximum age of a connection. `None` means no limit.
#[derive(Clone, Copy, Debug)]
struct MaxAge(Option<Duration>);

fn parse_age(text: &str) -> Result<MaxAge, String> {
    match text {
        "off" | "0" | "0s" => Ok(MaxAge(None)),
        _ => parse_duration(text).map(|age| MaxAge(Some(age))).map_err(|error| format!("{error}, or off")),
    }
}

/// Parses how long to wait for the storage.
fn parse_wait(text: &str) -> Result<StorageWait, String> {
    match text {
        "forever" => Ok(StorageWait::Forever),
        "0" | "0s" => Ok(StorageWait::AtMost(Duration::ZERO)),
        _ => parse_duration(text).map(StorageWait::AtMost).map_err(|error| format!("{error}, or forever, or 0")),
    }
}

impl ServeArgs {
    /// Builds the configuration from the flags. Defaults depend on the memory that the process may use.
    fn config(&self, memory: Option<u64>) -> ServerConfig {
        // A limit beyond what the machine can address is no limit.
        let bound = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let defaults = memory::Defaults::of(memory);
        let subject = SubjectOptions::default()
            .retain_events(bound(self.retain_events))
            .retain_bytes(bound(self.retain_bytes.unwrap_or(defaults.retain_bytes)))
            .max_observers(bound(self.max_observers))
            .max_filter_ids(bound(self.max_filter_ids))
            .max_total_filter_ids(bound(self.max_total_filter_ids.unwrap_or(defaults.max_total_filter_ids)));
        let connections = ConnectionOptions::default()
            .max_streams(self.max_streams)
            .handshake_timeout(self.handshake_timeout)
            .idle_timeout(self.idle_timeout)
            .max_age(self.max_connection_age.0)
            .keepalive_interval(self.keepalive_interval)
            .keepalive_timeout(self.keepalive_timeout);
        let calls = ServiceOptions::default()
            .max_message_bytes(bound(self.max_message_bytes))
            .max_pending_bytes(bound(self.max_pending_bytes.unwrap_or(defaults.max_pending_bytes)))
            .max_batch(bound(self.max_batch))
            .call_timeout(self.call_timeout);
        let config = ServerConfig::new(self.storage.clone());
        let storage_wait = self.storage_wait.unwrap_or(config.storage_wait);
        let workers = self.workers.unwrap_or(config.workers);
        config
            .listen(self.listen.clone())
            .admin_listen(self.admin_listen.clone())
            .tls(self.tls())
            .access_file(self.access_file.clone())
            .rate_limit(self.rate_limit())
            .storage_wait(storage_wait)
            .workers(workers)
            .subject(subject)
            .max_sessions(self.max_sessions)
            .max_leases(self.max_leases)
            .outage_grace(self.outage_grace)
            .max_connections(bound(self.max_connections))
            .connections(connections)
            .calls(calls)
            .drain_timeout(self.drain_timeout)
    }
}

impl ServeArgs {
    /// Returns the TLS files. clap ensures that the certificate and the key come together.
    fn tls(&self) -> Option<TlsFiles> {
        let (cert, key) = (self.tls_cert.clone()?, self.tls_key.clone()?);
        Some(TlsFiles::new(cert, key).client_ca(self.tls_client_ca.clone()))
    }

    fn rate_limit(&self) -> Option<RateLimit> {
        let per_second = NonZeroU32::new(self.rate_limit?)?;
        Some(RateLimit::new(per_second, self.rate_burst.and_then(NonZeroU32::new).unwrap_or(per_second)))
    }
}

pub(crate) async fn run(args: ServeArgs) -> Result<Exit, CliError> {
    telemetry::init(args.log_format, &args.log)
        .map_err(|error| CliError::new(Exit::Usage, format!("--log {:?} is not a valid filter: {error}", args.log)))?;
    let mut signals = Signals::listen()?;
    let memory = memory::limit();
    let config = args.config(memory);
    let (subject, calls) = (config.subject, config.calls.clone());
    let (workers, drain_timeout) = (config.workers, config.drain_timeout);
    let otlp = Otlp::start(&args.otlp)?;
    let config = config.tracer(otlp.as_ref().map(Otlp::tracer));
    let server = tokio::select! {
        bound = Server::bind(config) => bound.map_err(serve_error)?,
        () = signals.next() => {
            tracing::info!("received a signal: exiting before the storage is open");
            return Ok(Exit::Done);
        }
    };
    tracing::info!(
        address = server.address().map_or_else(|_| "?".to_owned(), |address| address.to_string()),
        admin_address = %server.admin_addr(),
        storage = %args.storage,
        workers,
        "listening"
    );
    tracing::info!(
        memory,
        retain_bytes = subject.retain_bytes,
        max_pending_bytes = calls.max_pending_bytes,
        max_total_filter_ids = subject.max_total_filter_ids,
        "memory limits"
    );

    let (stop, stopped) = oneshot::channel();
    let stopping = tokio::spawn(async move {
        signals.next().await;
        let _ = stop.send(());
        signals.next().await;
        tracing::warn!("received a second signal: exiting immediately");
        process::exit(Exit::No as i32);
    });
    // `stopped` fails only if the task above ends without sending, which it does not.
    let drain_began = OnceCell::new();
    let result = server.run(async { drop(stopped.await.map(|()| drain_began.set(Instant::now()))) }).await;
    if let (Some(otlp), Some(began)) = (otlp, drain_began.get()) {
        otlp.flush(drain_timeout.saturating_sub(began.elapsed())).await;
    }
    stopping.abort();
    result.map(|()| Exit::Done).map_err(serve_error)
}

fn serve_error(error: ServerError) -> CliError {
    let exit = match error {
        ServerError::File(_) | ServerError::TlsOverUnix => Exit::Usage,
        ServerError::Listen { .. } => Exit::Listen,
        ServerError::Open(_) | ServerError::Storage(_) => Exit::Storage,
        ServerError::FailedTask(_) => Exit::Failed,
        _ => Exit::No,
    };
    match flag_of(&error) {
        Some(flag) => CliError::new(exit, format!("{error}: see --{flag}")),
        None => CliError::new(exit, error),
    }
}

/// Returns the flag to which an error relates.
fn flag_of(error: &ServerError) -> Option<&'static str> {
    match error {
        ServerError::File(error) => Some(match error.file() {
            ConfigFile::Certificate => "tls-cert",
            ConfigFile::PrivateKey => "tls-key",
            ConfigFile::ClientCa => "tls-client-ca",
            _ => "access-file",
        }),
        ServerError::Listen { endpoint: Endpoint::Admin, .. } => Some("admin-listen"),
        ServerError::Listen { .. } => Some("listen"),
        ServerError::TlsOverUnix => Some("tls-cert"),
        ServerError::Storage(_) => Some("storage"),
        ServerError::Worker(_) => Some("workers"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panicked_task_has_its_own_exit_code() {
        let error = serve_error(ServerError::FailedTask("expiry of leases"));
        let shown = format!("{error:?}");
        assert!(shown.contains("Failed") && shown.contains("expiry of leases"), "{shown}");
        assert_eq!(Exit::Failed as u8, 6);
    }

    #[test]
    fn connection_age_may_be_off() {
        for off in ["off", "0", "0s"] {
            assert_eq!(parse_age(off).unwrap().0, None);
        }
        assert_eq!(parse_age("90s").unwrap().0, Some(Duration::from_secs(90)));
        assert!(parse_age("never").unwrap_err().ends_with(", or off"));
    }
}
