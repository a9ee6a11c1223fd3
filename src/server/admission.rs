//! Decides who may call, and how often: certificates, tokens and rate limits.

mod gate;
mod rate_limit;
pub(super) mod tls;

pub(super) use self::{
    gate::{Gate, Peer, Withdrawn},
    rate_limit::RateLimiter,
};
pub use self::{rate_limit::RateLimit, tls::TlsFiles};
