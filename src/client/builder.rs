//! How a client connects.

use std::time::Duration;

use tonic::{codegen::http::Uri, transport::Endpoint};

use super::{Client, ClientError};

const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Keeps every deadline far from the end of the clock.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// A connection that answers no ping for 10 s is dead. Pings also keep idle connections in the tables of the NATs and
/// load balancers between.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Builds a [`Client`]; made by [`Client::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ClientBuilder {
    endpoint: Endpoint,
    connect_timeout: Duration,
    timeout: Duration,
}

impl ClientBuilder {
    pub(super) fn new(addr: &str) -> Result<Self, ClientError> {
        let invalid = || ClientError::InvalidAddress { addr: addr.to_owned() };
        let uri: Uri = addr.parse().map_err(|_| invalid())?;
        // Without these the address is only found wanting at the first call, and as a server out of reach.
        if uri.scheme_str() != Some("http") || uri.host().is_none_or(str::is_empty) {
            return Err(invalid());
        }
        Ok(Self { endpoint: uri.into(), connect_timeout: DEFAULT_CONNECT_TIMEOUT, timeout: DEFAULT_TIMEOUT })
    }

    /// How long a call may take, connecting included, and how long a watch may take to open its stream. 10 s by
    /// default, a day at most. A batch that is split has this long for each of its calls.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(MAX_TIMEOUT);
        self
    }

    /// How long connecting may take; 5 s by default.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout.min(MAX_TIMEOUT);
        self
    }

    /// The client, which connects when it is first used.
    ///
    /// # Panics
    ///
    /// When called outside of a Tokio runtime.
    #[must_use]
    pub fn connect_lazy(self) -> Client {
        let endpoint = self
            .endpoint
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        Client::new(endpoint, self.timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_http_with_a_host() {
        for good in ["http://127.0.0.1:50051", "http://[::1]:50051", "http://sessiond.local"] {
            assert!(ClientBuilder::new(good).is_ok(), "{good}");
        }
        for bad in ["", "127.0.0.1:50051", "localhost", "https://127.0.0.1", "redis://h:1", "http://", "unix:/run/s"] {
            let error = ClientBuilder::new(bad).unwrap_err();
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
            assert!(!error.is_retryable());
        }
    }
}
