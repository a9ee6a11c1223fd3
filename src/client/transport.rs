//! What calls are made over: a connection, and the credentials sent with each call.

use std::fmt;

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::{ClientError, resend::Resend};

/// A connection that adds the client's token to every call.
pub(super) type Transport = InterceptedService<Resend, Authorization>;

/// The server to connect to, and the credentials to send.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) endpoint: Endpoint,
    pub(super) authorization: Authorization,
}

impl Target {
    /// Returns a new connection, opened on first use.
    pub(super) fn connect_lazy(&self) -> Transport {
        self.over(self.endpoint.connect_lazy())
    }

    /// Returns a transport over an existing connection.
    pub(super) fn over(&self, channel: Channel) -> Transport {
        InterceptedService::new(Resend(channel), self.authorization.clone())
    }
}

/// The token that is sent with every call, if there is one.
#[derive(Clone, Default)]
pub(super) struct Authorization(Option<MetadataValue<Ascii>>);

impl Authorization {
    pub(super) fn bearer(token: &str) -> Result<Self, ClientError> {
        let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        let mut value: MetadataValue<Ascii> =
            (format!("Bearer {token}").parse().ok()).filter(|_| is_token).ok_or(ClientError::InvalidToken)?;
        // Keeps the token out of logs and of HPACK's dynamic tables along the way.
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

impl Interceptor for Authorization {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Bearer ***" } else { "none" })
    }
}
