//! `serve`.

use std::{
    cell::OnceCell,
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
    process, thread,
    time::{Duration, Instant},
};

use clap::{Args, value_parser};
use sessiond::{
    server::{
        ConnectionOptions, ListenAddress, RateLimit, Server, ServerConfig, ServerError, StorageWait, TcpAddress,
        TlsFiles,
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

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// The address on which gRPC is served: HOST:PORT, or unix:PATH for a Unix socket, to which its owner and group may
    /// connect. Of a name that has several addresses, the first is taken that can be.
    #[arg(long, env = "SESSIOND_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:50051")]
    listen: ListenAddress,

    /// The address on which /metrics, /live, /ready and /writable are served, in plain HTTP.
    #[arg(long, env = "SESSIOND_ADMIN_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:9090")]
    admin_listen: TcpAddress,

    /// The file of the server's certificate and those that lead from it to a root, in PEM. Then TLS is spoken, and
    /// nothing else. Read again when it changes.
    #[arg(long, env = "SESSIOND_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// The file of the certificate's private key, in PEM. Read again when it changes.
    #[arg(long, env = "SESSIOND_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// The file of the roots that clients' certificates must come from, in PEM: a client without one is turned away. Read
    /// again when it changes.
    #[arg(long, env = "SESSIOND_TLS_CLIENT_CA", value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,

    /// The file of those who may call, and what: a line for each token and client certificate. Then nobody else may, but
    /// for asking after the server's health. Read again when it changes.
    #[arg(long, env = "SESSIOND_ACCESS_FILE", value_name = "FILE")]
    access_file: Option<PathBuf>,

    /// How many calls a second a client may make, told by its token, certificate or address [default: any number].
    /// KeepLeaseAlive is not counted.
    #[arg(long, env = "SESSIOND_RATE_LIMIT", value_name = "CALLS",
        value_parser = value_parser!(u32).range(1..=1_000_000))]
    rate_limit: Option<u32>,

    /// How many calls a client may make at once after a time of quiet [default: those of one second].
    #[arg(long, env = "SESSIOND_RATE_BURST", value_name = "CALLS", requires = "rate_limit",
        value_parser = value_parser!(u32).range(1..=10_000_000))]
    rate_burst: Option<u32>,

    /// Where the sessions are: memory: keeps them in this process, and they end with it; file:PATH keeps them in a file;
    /// redis://HOST:PORT, rediss:// (TLS) and redis+cluster://HOST:PORT,HOST:PORT share them among many replicas
    /// [parameters: registry, partitions, buckets, timeout_ms, wait_replicas, wait_timeout_ms].
    #[arg(long, env = "SESSIOND_STORAGE", value_name = "URL", default_value = "memory:", hide_env_values = true)]
    storage: StorageUrl,

    /// How long to wait at the start for a storage that cannot be opened yet, because it is away or loads its data: a
    /// duration, forever, or 0 for not at all [default: forever for Redis storages, 0 for the others]. Meanwhile the admin
    /// port says that the server is not ready. What waiting cannot cure, such as a wrong password, ends the server at once.
    #[arg(long, env = "SESSIOND_STORAGE_WAIT", value_name = "DURATION", value_parser = parse_wait)]
    storage_wait: Option<StorageWait>,

    /// How many threads serve connections [default: the cores that this process may use].
    #[arg(long, env = "SESSIOND_WORKERS", value_name = "N")]
    workers: Option<NonZeroUsize>,

    /// How many events are retained for observers to resume from.
    #[arg(long, env = "SESSIOND_RETAIN_EVENTS", value_name = "N", default_value = "1048576",
        value_parser = positive())]
    retain_events: u64,

    /// How many bytes of memory the retained events may take [default: 268435456, or a quarter of the memory that this
    /// process may use if that is less].
    #[arg(long, env = "SESSIOND_RETAIN_BYTES", value_name = "BYTES", value_parser = positive())]
    retain_bytes: Option<u64>,

    /// How many sessions there may be, at most 200,000,000.
    #[arg(long, env = "SESSIOND_MAX_SESSIONS", value_name = "N", default_value = "200000000",
        value_parser = value_parser!(u64).range(1..=200_000_000))]
    max_sessions: u64,

    /// How many leases there may be at once.
    #[arg(long, env = "SESSIOND_MAX_LEASES", value_name = "N", default_value = "1000000",
        value_parser = positive())]
    max_leases: u64,

    /// The longest time that an outage of the storage gives to leases with a shorter ttl. After an outage of length T each
    /// lease lives for its ttl again, and for at least T + 20 s or this, whichever is shorter: gRPC libraries may wait for two
    /// minutes before they reconnect. A restart on a file and a pause of this process for more than 5 s are such outages, too.
    #[arg(long, env = "SESSIOND_OUTAGE_GRACE", value_name = "DURATION", default_value = "150s",
        value_parser = parse_duration)]
    outage_grace: Duration,

    /// How many observers there may be at once.
    #[arg(long, env = "SESSIOND_MAX_OBSERVERS", value_name = "N", default_value = "100000",
        value_parser = positive())]
    max_observers: u64,

    /// How many ids the filters of one observer may name.
    #[arg(long, env = "SESSIOND_MAX_FILTER_IDS", value_name = "N", default_value = "4096",
        value_parser = positive())]
    max_filter_ids: u64,

    /// How many ids the filters of all observers together may name [default: one for each 512 bytes of the memory that
    /// this process may use, and 1048576 at least].
    #[arg(long, env = "SESSIOND_MAX_TOTAL_FILTER_IDS", value_name = "N", value_parser = positive())]
    max_total_filter_ids: Option<u64>,

    /// How many connections there may be at once; more wait to be accepted.
    #[arg(long, env = "SESSIOND_MAX_CONNECTIONS", value_name = "N", default_value = "100000",
        value_parser = positive())]
    max_connections: u64,

    /// How many calls and streams may be open at once on one connection.
    #[arg(long, env = "SESSIOND_MAX_STREAMS", value_name = "N", default_value = "1024",
        value_parser = value_parser!(u32).range(1..))]
    max_streams: u32,

    /// How long a client may take for the handshake: TLS, and the beginning of HTTP/2.
    #[arg(long, env = "SESSIOND_HANDSHAKE_TIMEOUT", value_name = "DURATION", default_value = "10s",
        value_parser = parse_duration)]
    handshake_timeout: Duration,

    /// How long a connection may be without a call or a stream before it is ended. Streams that watch the server's health do not
    /// count.
    #[arg(long, env = "SESSIOND_IDLE_TIMEOUT", value_name = "DURATION", default_value = "15m",
        value_parser = parse_duration)]
    idle_timeout: Duration,

    /// How old a connection may become, a tenth more or less, or off. Then its client is told to connect anew (GOAWAY):
    /// calls under way finish, and streams end with UNAVAILABLE once they are synced, to go on from their cursors. So
    /// replicas that are added get their share.
    #[arg(long, env = "SESSIOND_MAX_CONNECTION_AGE", value_name = "DURATION", default_value = "30m",
        value_parser = parse_age)]
    max_connection_age: MaxAge,

    /// How long a connection may be quiet before it is pinged.
    #[arg(long, env = "SESSIOND_KEEPALIVE_INTERVAL", value_name = "DURATION", default_value = "60s",
        value_parser = parse_duration)]
    keepalive_interval: Duration,

    /// How long the answer to a ping may take before the connection is ended.
    #[arg(long, env = "SESSIOND_KEEPALIVE_TIMEOUT", value_name = "DURATION", default_value = "20s",
        value_parser = parse_duration)]
    keepalive_timeout: Duration,

    /// How many bytes a request may have.
    #[arg(long, env = "SESSIOND_MAX_MESSAGE_BYTES", value_name = "BYTES", default_value = "4194304",
        value_parser = value_parser!(u64).range(1024..=1 << 30))]
    max_message_bytes: u64,

    /// How many bytes all requests together may take that have not come whole, with 1024 more for each of them
    /// [default: 1073741824, or an eighth of the memory that this process may use if that is less].
    #[arg(long, env = "SESSIOND_MAX_PENDING_BYTES", value_name = "BYTES", value_parser = positive())]
    max_pending_bytes: Option<u64>,

    /// How many sessions a batch may name, at most 65,536.
    #[arg(long, env = "SESSIOND_MAX_BATCH", value_name = "N", default_value = "65536",
        value_parser = value_parser!(u64).range(1..=65_536))]
    max_batch: u64,

    /// How long a call may take, and a stream to open; less where the client says so.
    #[arg(long, env = "SESSIOND_CALL_TIMEOUT", value_name = "DURATION", default_value = "30s",
        value_parser = parse_duration)]
    call_timeout: Duration,

    /// How long a drain may take after SIGTERM, SIGINT or SIGHUP, before what is left is cut off.
    #[arg(long, env = "SESSIOND_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "10s",
        value_parser = parse_duration)]
    drain_timeout: Duration,

    #[command(flatten)]
    otlp: OtlpArgs,

    /// How a line of the log is written.
    #[arg(long, env = "SESSIOND_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,

    /// What is logged, as directives of tracing-subscriber: warn, or info,sessiond::server=debug. With
    /// info,sessiond::call=debug each call has a line.
    #[arg(long, env = "SESSIOND_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
}

fn positive() -> clap::builder::RangedU64ValueParser<u64> {
    value_parser!(u64).range(1..)
}

/// How old a connection may become. None for any age.
#[derive(Clone, Copy, Debug)]
struct MaxAge(Option<Duration>);

fn parse_age(text: &str) -> Result<MaxAge, String> {
    match text {
        "off" | "0" | "0s" => Ok(MaxAge(None)),
        _ => parse_duration(text).map(|age| MaxAge(Some(age))).map_err(|error| format!("{error}, or off")),
    }
}

/// Reads how long to wait for the storage.
fn parse_wait(text: &str) -> Result<StorageWait, String> {
    match text {
        "forever" => Ok(StorageWait::Forever),
        "0" | "0s" => Ok(StorageWait::AtMost(Duration::ZERO)),
        _ => parse_duration(text).map(StorageWait::AtMost).map_err(|error| format!("{error}, forever or 0")),
    }
}

impl ServeArgs {
    /// What the flags say, with the defaults of a process that may use so much memory.
    fn config(&self, memory: Option<u64>) -> ServerConfig {
        // More than the machine can address is as good as no bound.
        let bound = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let defaults = memory::Defaults::of(memory);
        ServerConfig {
            listen: self.listen.clone(),
            admin_listen: self.admin_listen.clone(),
            tls: self.tls(),
            access_file: self.access_file.clone(),
            rate_limit: self.rate_limit(),
            storage: self.storage.clone().into(),
            storage_wait: self.storage_wait.unwrap_or_else(|| StorageWait::default_for(&self.storage)),
            workers: self.workers.or(thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN),
            subject: SubjectOptions {
                retain_events: bound(self.retain_events),
                retain_bytes: bound(self.retain_bytes.unwrap_or(defaults.retain_bytes)),
                max_observers: bound(self.max_observers),
                max_filter_ids: bound(self.max_filter_ids),
                max_total_filter_ids: bound(self.max_total_filter_ids.unwrap_or(defaults.max_total_filter_ids)),
            },
            max_sessions: self.max_sessions,
            max_leases: self.max_leases,
            outage_grace: self.outage_grace,
            max_connections: bound(self.max_connections),
            connections: ConnectionOptions {
                max_streams: self.max_streams,
                handshake_timeout: self.handshake_timeout,
                idle_timeout: self.idle_timeout,
                max_age: self.max_connection_age.0,
                keepalive_interval: self.keepalive_interval,
                keepalive_timeout: self.keepalive_timeout,
            },
            calls: ServiceOptions {
                max_message_bytes: bound(self.max_message_bytes),
                max_pending_bytes: bound(self.max_pending_bytes.unwrap_or(defaults.max_pending_bytes)),
                max_batch: bound(self.max_batch),
                call_timeout: self.call_timeout,
            },
            tracer: None,
            drain_timeout: self.drain_timeout,
        }
    }
}

impl ServeArgs {
    /// Neither of the first two comes without the other.
    fn tls(&self) -> Option<TlsFiles> {
        let (cert, key) = (self.tls_cert.clone()?, self.tls_key.clone()?);
        Some(TlsFiles { cert, key, client_ca: self.tls_client_ca.clone() })
    }

    fn rate_limit(&self) -> Option<RateLimit> {
        let per_second = NonZeroU32::new(self.rate_limit?)?;
        Some(RateLimit { per_second, burst: self.rate_burst.and_then(NonZeroU32::new).unwrap_or(per_second) })
    }
}

pub(crate) async fn run(args: ServeArgs) -> Result<Exit, CliError> {
    telemetry::init(args.log_format, &args.log)
        .map_err(|error| CliError::new(Exit::Usage, format!("--log {:?} is no filter: {error}", args.log)))?;
    let mut signals = Signals::listen()?;
    let memory = memory::limit();
    let config = args.config(memory);
    let (subject, calls) = (config.subject, config.calls.clone());
    let (workers, drain_timeout) = (config.workers, config.drain_timeout);
    let otlp = Otlp::start(&args.otlp)?;
    let config = ServerConfig { tracer: otlp.as_ref().map(Otlp::tracer), ..config };
    let server = tokio::select! {
        bound = Server::bind(config) => bound.map_err(serve_error)?,
        () = signals.next() => {
            tracing::info!("stopping before the storage is open");
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
        "bounds of memory"
    );

    let (stop, stopped) = oneshot::channel();
    let waits = tokio::spawn(async move {
        signals.next().await;
        let _ = stop.send(());
        signals.next().await;
        tracing::warn!("a second signal: exiting at once");
        process::exit(Exit::No as i32);
    });
    // An error would tell that the task above is gone, which it is not before it has sent.
    let drain_began = OnceCell::new();
    let result = server.run(async { drop(stopped.await.map(|()| drain_began.set(Instant::now()))) }).await;
    if let (Some(otlp), Some(began)) = (otlp, drain_began.get()) {
        otlp.flush(drain_timeout.saturating_sub(began.elapsed())).await;
    }
    waits.abort();
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
    CliError::new(exit, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_panicked_ends_the_program_with_a_code_of_its_own() {
        let error = serve_error(ServerError::FailedTask("expiry of leases"));
        let shown = format!("{error:?}");
        assert!(shown.contains("Failed") && shown.contains("expiry of leases"), "{shown}");
        assert_eq!(Exit::Failed as u8, 6);
    }

    #[test]
    fn an_age_may_be_off() {
        for off in ["off", "0", "0s"] {
            assert_eq!(parse_age(off).unwrap().0, None);
        }
        assert_eq!(parse_age("90s").unwrap().0, Some(Duration::from_secs(90)));
        assert!(parse_age("never").unwrap_err().ends_with(", or off"));
    }
}
