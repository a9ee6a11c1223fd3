//! Parses the URL of a registry in Redis: `redis://`, `redis+cluster://`, `redis+sentinel://`, or one of them with TLS.

use std::{fmt, str::FromStr, time::Duration};

use redis::{ConnectionInfo, IntoConnectionInfo, RedisError};

/// With this many buckets, Redis' compact encoding is enough for about ten million sessions: see
/// [`RedisStorage`](super::RedisStorage).
pub(super) const DEFAULT_BUCKETS: u32 = 1 << 17;
/// The default in a cluster. A single server gains nothing from more than one partition.
pub(super) const DEFAULT_CLUSTER_PARTITIONS: u32 = 16;

const MAX_BUCKETS: u32 = 1 << 24;
const MAX_PARTITIONS: u32 = 256;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
const DEFAULT_WAIT_TIMEOUT: Duration = Duration::from_millis(500);

/// The port of a Sentinel, unless the URL names another.
const SENTINEL_PORT: u16 = 26_379;

const PARAMETERS: &str = "registry, partitions, buckets, timeout_ms, wait_replicas, wait_timeout_ms";

/// The parameters for the login at the Sentinels.
pub(in crate::storage) const SENTINEL_LOGIN: [&str; 2] = ["sentinel_username", "sentinel_password"];

/// The location of a registry in Redis, and its numbers of partitions and buckets.
///
/// `redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE][?PARAMETERS]` names a server, and `rediss://` one with TLS.
/// `redis+cluster://` and `rediss+cluster://` name any nodes of a Redis Cluster: `HOST:PORT,HOST:PORT`.
///
/// `redis+sentinel://[USER:PASSWORD@]SENTINEL[:PORT],…/MASTER[/DATABASE][?PARAMETERS]` names the Sentinels of a master.
/// The login before the `@` is for Redis. With `rediss+sentinel://`, both Redis and the Sentinels use TLS.
///
/// | parameter | default | meaning |
/// |---|---|---|
/// | `registry` | `sessiond` | the registry's name, if one Redis has several registries |
/// | `partitions` | 1, 16 in a cluster | parts of the change log, each on one node |
/// | `buckets` | 131072 | parts of the session set; at least as many as partitions |
/// | `timeout_ms` | 1000 | how long to wait for a connection to Redis or for an answer |
/// | `wait_replicas` | 0 | how many Redis replicas must have a change before its call is answered |
/// | `wait_timeout_ms` | 500 | how long to wait for these replicas |
/// | `sentinel_username`, `sentinel_password` | none | the login at the Sentinels |
///
/// Partitions and buckets are fixed when the registry is created. After that, the URL must omit them or give the same
/// numbers. [`Display`](fmt::Display) hides the passwords.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    kind: Kind,
    /// One URL for each node, with user and password. With Sentinel, the only one is that of the master, with no host.
    nodes: Vec<String>,
    sentinels: Option<SentinelUrls>,
    /// The URL with the passwords hidden, for messages.
    shown: String,
    pub(super) registry: String,
    pub(super) partitions: Option<u32>,
    pub(super) buckets: Option<u32>,
    pub(super) timeout: Duration,
    pub(super) wait: Option<Wait>,
}

/// What the hosts of a URL are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Server,
    Cluster,
    Sentinel,
}

#[derive(Clone, PartialEq, Eq)]
struct SentinelUrls {
    /// One URL for each Sentinel, with user and password.
    nodes: Vec<String>,
    master: String,
}

/// How many Redis replicas must have a change, and how long to wait for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    pub(super) replicas: u32,
    pub(super) timeout: Duration,
}

/// The reason why a URL does not name a registry in Redis. Never contains the password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{shown}: {problem}")]
pub struct RedisUrlError {
    shown: String,
    problem: String,
}

impl RedisUrl {
    /// Returns whether `text` has the scheme of a Redis URL.
    pub(crate) fn is_meant(text: &str) -> bool {
        scheme(text).is_some()
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.kind == Kind::Cluster
    }

    /// Returns the servers that the URL names. With Sentinel, the only one is the master, whose address is not known.
    pub(super) fn nodes(&self) -> Result<Vec<ConnectionInfo>, RedisError> {
        parse_all(&self.nodes)
    }

    /// Returns the Sentinels that the URL names, and the name of their master.
    pub(super) fn sentinels(&self) -> Result<Option<(Vec<ConnectionInfo>, String)>, RedisError> {
        let sentinels = self.sentinels.as_ref().map(|urls| Ok((parse_all(&urls.nodes)?, urls.master.clone())));
        sentinels.transpose()
    }
}

fn parse_all(nodes: &[String]) -> Result<Vec<ConnectionInfo>, RedisError> {
    nodes.iter().map(|node| node.as_str().into_connection_info()).collect()
}

/// Splits off the scheme. Returns what the hosts are, whether to use TLS, and the rest of the URL.
fn scheme(text: &str) -> Option<(Kind, bool, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let (protocol, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
    let kind = match kind {
        "" if !scheme.contains('+') => Kind::Server,
        "cluster" => Kind::Cluster,
        "sentinel" => Kind::Sentinel,
        _ => return None,
    };
    match protocol {
        "redis" => Some((kind, false, rest)),
        "rediss" => Some((kind, true, rest)),
        _ => None,
    }
}

/// Returns the master's name and the database in the path of a Sentinel URL.
fn master_in(path: &str) -> Option<(&str, &str)> {
    let (master, database) = path.split_once('/').unwrap_or((path, ""));
    // Sentinel accepts only such names.
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (!master.is_empty() && master.chars().all(is_name)).then_some((master, database))
}

/// Returns the address of a Sentinel, with the default port if it has none.
fn with_port(host: &str) -> String {
    // The colons of an IPv6 address are in brackets.
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
    if has_port { host.to_owned() } else { format!("{host}:{SENTINEL_PORT}") }
}

impl FromStr for RedisUrl {
    type Err = RedisUrlError;

    fn from_str(text: &str) -> Result<Self, RedisUrlError> {
        let shown = without_password(text);
        let wrong = |problem: String| RedisUrlError { shown: shown.clone(), problem };
        let Some((kind, is_tls, rest)) = scheme(text) else {
            return Err(wrong("write redis://, redis+cluster:// or redis+sentinel://, or rediss for TLS".to_owned()));
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (login, hosts) = place.rsplit_once('@').map_or(("", place), |(login, hosts)| (login, hosts));
        let (hosts, path) = match kind {
            Kind::Sentinel => hosts.split_once('/').unwrap_or((hosts, "")),
            _ => (hosts, ""),
        };
        let login = if login.is_empty() { String::new() } else { format!("{login}@") };
        let scheme = if is_tls { "rediss" } else { "redis" };
        let hosts: Vec<&str> = if kind == Kind::Server { vec![hosts] } else { hosts.split(',').collect() };
        let mut url = Self {
            kind,
            nodes: hosts.iter().map(|host| format!("{scheme}://{login}{host}")).collect(),
            sentinels: None,
            shown: shown.clone(),
            registry: "sessiond".to_owned(),
            partitions: None,
            buckets: None,
            timeout: DEFAULT_TIMEOUT,
            wait: None,
        };
        let mut wait = Wait { replicas: 0, timeout: DEFAULT_WAIT_TIMEOUT };
        let mut sentinel_login = ["", ""];
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let number = |most: u32| match value.parse::<u32>() {
                Ok(number) if (1..=most).contains(&number) => Ok(number),
                _ => Err(wrong(format!("{name}={value} is not a number from 1 to {most}"))),
            };
            let millis = || number(60_000).map(|ms| Duration::from_millis(u64::from(ms)));
            match name {
                "registry" => value.clone_into(&mut url.registry),
                "partitions" => url.partitions = Some(number(MAX_PARTITIONS)?),
                "buckets" => url.buckets = Some(number(MAX_BUCKETS)?),
                "timeout_ms" => url.timeout = millis()?,
                "wait_replicas" => wait.replicas = if value == "0" { 0 } else { number(16)? },
                "wait_timeout_ms" => wait.timeout = millis()?,
                _ if SENTINEL_LOGIN.contains(&name) => {
                    if kind != Kind::Sentinel {
                        return Err(wrong(format!("{name} is only for redis+sentinel://")));
                    }
                    // The others stay encoded as they are in a login.
                    if value.contains(|c: char| !c.is_ascii_graphic() || "/?#[]@:".contains(c)) {
                        return Err(wrong(format!("{name} has a special character: write %40 for @, %3A for :, …")));
                    }
                    sentinel_login[usize::from(name == SENTINEL_LOGIN[1])] = value;
                }
                // What follows an & in a password looks like a parameter, and must not be shown.
                _ if !sentinel_login[1].is_empty() => {
                    return Err(wrong(format!(
                        "unknown parameter after sentinel_password: use {PARAMETERS}, and %26 for & in a password"
                    )));
                }
                _ => return Err(wrong(format!("unknown parameter {name:?}: use {PARAMETERS}"))),
            }
        }
        if kind == Kind::Sentinel {
            let Some((master, database)) = master_in(path) else {
                return Err(wrong(
                    "write the name of the master after the Sentinels: /MASTER or /MASTER/DATABASE".to_owned(),
                ));
            };
            let [user, password] = sentinel_login;
            let sentinel_login =
                if user.is_empty() && password.is_empty() { String::new() } else { format!("{user}:{password}@") };
            let nodes = hosts.iter().map(|host| format!("{scheme}://{sentinel_login}{}", with_port(host))).collect();
            url.sentinels = Some(SentinelUrls { nodes, master: master.to_owned() });
            url.nodes = vec![format!("{scheme}://{login}{master}/{database}")];
        }
        url.wait = (wait.replicas > 0).then_some(wait);
        // The name is part of every key. Braces in it would change the hash tag.
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if url.registry.is_empty() || url.registry.len() > 64 || !url.registry.chars().all(is_plain) {
            return Err(wrong("registry must be 1 to 64 letters, digits, '-', '_' or '.'".to_owned()));
        }
        let (partitions, buckets) = (url.partitions.unwrap_or(1), url.buckets.unwrap_or(DEFAULT_BUCKETS));
        if buckets < partitions {
            return Err(wrong(format!(
                "{partitions} partitions need at least {partitions} buckets, but buckets={buckets}"
            )));
        }
        if hosts.iter().any(|host| host.is_empty() || host.starts_with(':')) {
            return Err(wrong("a host is missing".to_owned()));
        }
        let nodes = url.nodes().map_err(|error| wrong(error.to_string()))?;
        url.sentinels().map_err(|error| wrong(error.to_string()))?;
        if url.is_cluster() && nodes.iter().any(|node| node.redis_settings().db() != 0) {
            return Err(wrong("a Redis Cluster has only database 0: leave the database out".to_owned()));
        }
        Ok(url)
    }
}

/// Hides the password, which is between the login's first colon and the last `@` before the parameters. Also hides the
/// Sentinels' password and everything after it.
fn without_password(text: &str) -> String {
    let (text, secret) = match text.find("sentinel_password=") {
        Some(at) => (&text[..at], "sentinel_password=***"),
        None => (text, ""),
    };
    let Some((scheme, rest)) = text.split_once("://") else { return format!("{text}{secret}") };
    let (place, query) = match rest.split_once('?') {
        Some((place, query)) => (place, format!("?{query}{secret}")),
        None => (rest, secret.to_owned()),
    };
    match place.rsplit_once('@') {
        Some((login, hosts)) => {
            let login = login.split_once(':').map_or(login.to_owned(), |(user, _)| format!("{user}:***"));
            format!("{scheme}://{login}@{hosts}{query}")
        }
        None => format!("{text}{secret}"),
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedisUrl").field(&self.shown).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> RedisUrl {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn parses_parameters_and_leaves_the_rest_to_the_client() {
        let plain = url("redis://localhost");
        assert_eq!(
            (plain.registry.as_str(), plain.partitions, plain.buckets, plain.wait),
            ("sessiond", None, None, None)
        );
        assert_eq!(url("redis://h?wait_replicas=0").wait, None);
        for partitions in [6, 7, 9, 12] {
            let divided = url(&format!("redis+cluster://h?partitions={partitions}"));
            assert_eq!(divided.partitions, Some(partitions));
        }
        let full = url(
            "rediss://u:p@h:1/3?registry=a.b&partitions=4&buckets=64&wait_replicas=2&wait_timeout_ms=7&timeout_ms=9",
        );
        assert_eq!((full.registry.as_str(), full.partitions, full.buckets), ("a.b", Some(4), Some(64)));
        assert_eq!(full.wait, Some(Wait { replicas: 2, timeout: Duration::from_millis(7) }));
        assert_eq!(full.timeout, Duration::from_millis(9));
        assert_eq!(full.nodes().unwrap()[0].redis_settings().db(), 3);
        let cluster = url("redis+cluster://u:p@a:1,b:2,c:3");
        assert!(cluster.is_cluster());
        let nodes: Vec<String> = cluster.nodes().unwrap().iter().map(|node| node.addr().to_string()).collect();
        assert_eq!(nodes, ["a:1", "b:2", "c:3"]);
        assert_eq!(cluster.nodes().unwrap()[2].redis_settings().password(), Some("p"));
    }

    #[test]
    fn sentinels_and_their_master_have_separate_logins() {
        let all = url(
            "rediss+sentinel://u:p@a:1,b,[::1],[::2]:3/main-1.x/2?registry=r&sentinel_username=s&sentinel_password=q%40",
        );
        assert!(!all.is_cluster());
        let (sentinels, master) = all.sentinels().unwrap().unwrap();
        assert_eq!(master, "main-1.x");
        let hosts: Vec<String> = sentinels.iter().map(|node| node.addr().to_string()).collect();
        assert_eq!(hosts, ["a:1", "b:26379", "::1:26379", "::2:3"]);
        for sentinel in &sentinels {
            let login = sentinel.redis_settings();
            assert_eq!((login.username(), login.password(), login.db()), (Some("s"), Some("q@"), 0));
            assert!(matches!(sentinel.addr(), redis::ConnectionAddr::TcpTls { insecure: false, .. }));
        }
        let redis = &all.nodes().unwrap()[0];
        let login = redis.redis_settings();
        assert_eq!((login.username(), login.password(), login.db()), (Some("u"), Some("p"), 2));
        assert!(matches!(redis.addr(), redis::ConnectionAddr::TcpTls { insecure: false, .. }));

        let plain = url("redis+sentinel://a/m");
        let (sentinels, _) = plain.sentinels().unwrap().unwrap();
        assert_eq!(sentinels[0].redis_settings().password(), None);
        assert_eq!(plain.nodes().unwrap()[0].redis_settings().db(), 0);
        assert_eq!(plain.nodes().unwrap()[0].redis_settings().password(), None);
        let password_only = url("redis+sentinel://:p@a/m?sentinel_password=q");
        let (sentinels, _) = password_only.sentinels().unwrap().unwrap();
        assert_eq!(sentinels[0].redis_settings().username(), None);
        assert_eq!(sentinels[0].redis_settings().password(), Some("q"));
    }

    #[test]
    fn password_is_never_shown() {
        for text in [
            "redis://u:s3cret@h:1/?registry=x",
            "redis+cluster://:s3cret@h:1,i:2",
            "redis://u:s3cret@h:x",
            "redis://:s3@cret@h?z=1",
            "redis+sentinel://u:s3cret@a:1,b:2/m?sentinel_password=s3cret",
            "redis+sentinel://a/m?sentinel_username=u&sentinel_password=s3&cret",
            "redis+sentinel://a/m?sentinel_password=s3&cret=1",
            "redis+sentinel://a/m?sentinel_password=s3@cret",
            "redis+sentinel://a/m?sentinel_password=s3/cret",
            "redis+sentinel://a/m?sentinel_password=s3#cret",
            "redis+sentinel://a/m?sentinel_password=s3%zcret",
            "redis+sentinel://a?sentinel_password=s3cret",
            "redis://a?sentinel_password=s3cret",
        ] {
            let shown = match text.parse::<RedisUrl>() {
                Ok(url) => format!("{url} {url:?}"),
                Err(error) => format!("{error} {error:?}"),
            };
            assert!(!shown.contains("s3") && !shown.contains("cret"), "{shown}");
            assert!(shown.contains("***"), "{shown}");
        }
    }

    #[test]
    fn errors_name_the_problem() {
        for (text, part) in [
            ("redis://", "host"),
            ("redis+cluster://a:1,,b:2", "host"),
            ("redis://h?partitions=0", "partitions=0 is not a number from 1 to 256"),
            ("redis://h?partitions=3&buckets=2", "3 partitions need at least 3 buckets, but buckets=2"),
            ("redis://h?wait_replicas=17", "wait_replicas=17 is not a number from 1 to 16"),
            ("redis://h?registry={a}", "registry must be"),
            ("redis://h?regsitry=a", "use registry, partitions, buckets"),
            ("redis+cluster://h:1/2", "database"),
            ("redis+sentinel://h:1", "name of the master"),
            ("redis+sentinel://h:1/", "name of the master"),
            ("redis+sentinel://h:1/a b", "name of the master"),
            ("redis+sentinel://a,,b/m", "host"),
            ("redis+sentinel://a/m/x", "database"),
            ("redis+sentinel://a:x/m", "did not parse"),
            ("redis://h?sentinel_username=u", "only for redis+sentinel"),
            ("redis+cluster+sentinel://h", "write redis://"),
            ("redis+://h", "write redis://"),
        ] {
            let error = text.parse::<RedisUrl>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
