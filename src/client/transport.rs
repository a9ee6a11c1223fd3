//! What calls are made over: a connection, and the credentials sent with each call.

use std::{
    fmt,
    fs::{self, Metadata},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

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
pub(super) enum Authorization {
    #[default]
    None,
    Token(Token),
    File(Arc<TokenFile>),
}

type Token = MetadataValue<Ascii>;

impl Authorization {
    pub(super) fn bearer(token: &str) -> Result<Self, ClientError> {
        parse(token).map(Self::Token)
    }

    pub(super) fn file(path: PathBuf) -> Result<Self, ClientError> {
        TokenFile::open(path).map(|file| Self::File(Arc::new(file)))
    }
}

fn parse(token: &str) -> Result<Token, ClientError> {
    let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    let mut value: Token =
        (format!("Bearer {token}").parse().ok()).filter(|_| is_token).ok_or(ClientError::InvalidToken)?;
    // Keeps the token out of logs and of HPACK's dynamic tables along the way.
    value.set_sensitive(true);
    Ok(value)
}

/// A token in a file that is read again when it changes.
pub(super) struct TokenFile {
    path: PathBuf,
    /// The token that was last read, and what the file was like then.
    last: Mutex<(Token, Metadata)>,
}

impl TokenFile {
    fn open(path: PathBuf) -> Result<Self, ClientError> {
        let unreadable =
            |error: io::Error| ClientError::InvalidTokenFile { path: path.clone(), reason: error.to_string() };
        let found = fs::metadata(&path).map_err(unreadable)?;
        let token = parse(fs::read_to_string(&path).map_err(unreadable)?.trim())?;
        Ok(Self { path, last: Mutex::new((token, found)) })
    }

    /// Returns the token. Looks at the file each time, which takes about a microsecond.
    fn token(&self) -> Token {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(found) = fs::metadata(&self.path)
            && !is_same(&found, &last.1)
            && let Ok(text) = fs::read_to_string(&self.path)
            && let Ok(token) = parse(text.trim())
        {
            *last = (token, found);
        }
        last.0.clone()
    }
}

/// Returns whether a file has probably not changed between two looks.
fn is_same(now: &Metadata, before: &Metadata) -> bool {
    now.len() == before.len() && now.modified().ok() == before.modified().ok()
}

impl Interceptor for Authorization {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let token = match self {
            Self::None => return Ok(request),
            Self::Token(token) => token.clone(),
            Self::File(file) => file.token(),
        };
        request.metadata_mut().insert("authorization", token);
        Ok(request)
    }
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Token(_) => f.write_str("Bearer ***"),
            Self::File(file) => write!(f, "Bearer *** from {:?}", file.path),
        }
    }
}
