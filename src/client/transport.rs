//! What calls go over: a connection, and who calls.

use std::fmt;

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::{ClientError, resend::Resend};

/// A connection over which every call tells who calls.
pub(super) type Transport = InterceptedService<Resend, Authorization>;

/// Where a client connects to, and as whom.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) endpoint: Endpoint,
    pub(super) authorization: Authorization,
}

impl Target {
    /// A connection of its own, made when it is first used.
    pub(super) fn connect_lazy(&self) -> Transport {
        self.over(self.endpoint.connect_lazy())
    }

    /// Calls over a connection that is there.
    pub(super) fn over(&self, channel: Channel) -> Transport {
        InterceptedService::new(Resend(channel), self.authorization.clone())
    }
}

/// The token that is sent with every call, if any.
#[derive(Clone, Default)]
pub(super) struct Authorization(Option<MetadataValue<Ascii>>);

impl Authorization {
    pub(super) fn bearer(token: &str) -> Result<Self, ClientError> {
        let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        let mut value: MetadataValue<Ascii> =
            (format!("Bearer {token}").parse().ok()).filter(|_| is_token).ok_or(ClientError::InvalidToken)?;
        // Neither logged, nor kept in the tables of what lies between.
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
