//! Limits the rate of calls of each client.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    num::NonZeroU32,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::gate::Peer;

/// The maximum number of clients with their own entry. Further clients share one allowance until entries of quiet
/// clients are removed. So an attacker with many addresses can neither exhaust memory nor gain more than one extra
/// allowance.
const MAX_CLIENTS: usize = 65_536;

/// The minimum time between two searches for entries of quiet clients.
const SWEEP: Duration = Duration::from_secs(1);

/// The client to which a call is counted.
#[derive(Debug, Hash)]
pub(crate) enum Caller<'a> {
    /// The name of a token or a certificate.
    Named(&'a str),
    Address(IpAddr),
}

impl<'a> Caller<'a> {
    /// Identifies a client by its certificate or, if it has none, by its address. For servers without an access list.
    pub(crate) fn of(peer: &'a Peer) -> Self {
        match peer.certificate.as_deref() {
            Some([name, ..]) => Self::Named(name),
            _ => Self::Address(peer.address),
        }
    }

    /// Reduces an IPv6 address to its /64 network, which usually belongs to one client, and an IPv4-mapped one to IPv4.
    fn normalized(self) -> Self {
        match self {
            Self::Address(IpAddr::V6(address)) => match address.to_ipv4_mapped() {
                Some(address) => Self::Address(address.into()),
                None => Self::Address(IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into())),
            },
            other => other,
        }
    }
}

/// The limit on the calls of each client. A client is identified by its token, its certificate or its address.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RateLimit {
    /// The sustained rate, in calls per second.
    pub per_second: NonZeroU32,
    /// How many calls a client may make together after a quiet time.
    pub burst: NonZeroU32,
}

impl RateLimit {
    /// Creates a limit of `per_second` calls per second, and `burst` calls together after a quiet time.
    #[must_use]
    pub const fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        Self { per_second, burst }
    }
}

/// Limits the calls of each client by the generic cell rate algorithm.
///
/// For each client it stores one time: when all calls so far would be used up if they had come at the sustained rate.
pub(crate) struct RateLimiter {
    /// The time that one call uses up.
    interval: Duration,
    /// How far a client's time may be ahead of the clock.
    tolerance: Duration,
    hasher: RandomState,
    clients: Mutex<Clients>,
}

struct Clients {
    /// By the hash of the [`Caller`].
    used_until: HashMap<u64, Instant>,
    others_used_until: Option<Instant>,
    swept: Option<Instant>,
}

impl RateLimiter {
    pub(crate) fn new(limit: RateLimit) -> Self {
        let interval = Duration::from_secs(1) / limit.per_second.get();
        let clients = Clients { used_until: HashMap::new(), others_used_until: None, swept: None };
        Self {
            interval,
            tolerance: interval * limit.burst.get(),
            hasher: RandomState::new(),
            clients: Mutex::new(clients),
        }
    }

    /// Counts a call. If it exceeds the limit, returns how long until the next call is allowed, and does not count it.
    pub(crate) fn count(&self, caller: Caller<'_>, now: Instant) -> Result<(), Duration> {
        let client = self.hasher.hash_one(caller.normalized());
        let clients = &mut *self.clients.lock();
        let used_until = if let Some(used_until) = clients.used_until.get_mut(&client) {
            used_until
        } else if clients.has_room(now) {
            clients.used_until.entry(client).or_insert(now)
        } else {
            clients.others_used_until.get_or_insert(now)
        };
        let next = (*used_until).max(now) + self.interval;
        let ahead = next.duration_since(now);
        if ahead > self.tolerance {
            return Err(ahead - self.tolerance);
        }
        *used_until = next;
        Ok(())
    }
}

impl Clients {
    /// Returns whether another client can have its own entry. Removes entries whose time has passed if necessary: such
    /// a client has its full allowance, like one without an entry.
    fn has_room(&mut self, now: Instant) -> bool {
        if self.used_until.len() < MAX_CLIENTS {
            return true;
        }
        if self.swept.is_none_or(|swept| now >= swept + SWEEP) {
            self.swept = Some(now);
            self.used_until.retain(|_, used_until| *used_until > now);
        }
        self.used_until.len() < MAX_CLIENTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(per_second: u32, burst: u32) -> RateLimiter {
        let number = |number| NonZeroU32::new(number).unwrap();
        RateLimiter::new(RateLimit { per_second: number(per_second), burst: number(burst) })
    }

    #[test]
    fn a_client_may_use_its_burst_and_then_the_sustained_rate() {
        let (limiter, start) = (limiter(10, 3), Instant::now());
        let call = |name, at: u64| limiter.count(Caller::Named(name), start + Duration::from_millis(at));
        for _ in 0..3 {
            assert_eq!(call("a", 0), Ok(()));
        }
        assert_eq!(call("a", 0), Err(Duration::from_millis(100)));
        assert_eq!(call("a", 60), Err(Duration::from_millis(40)), "a refused call does not count");
        assert_eq!(call("a", 100), Ok(()));
        assert!(call("a", 100).is_err());
        assert_eq!(call("b", 100), Ok(()), "each client has its own allowance");
        // A longer quiet time does not allow a larger burst.
        assert_eq!((0..9).filter(|_| call("a", 1 << 40).is_ok()).count(), 3);
    }

    #[test]
    fn all_addresses_of_an_ipv6_network_are_one_client() {
        let (limiter, now) = (limiter(1, 1), Instant::now());
        let call = |address: &str| limiter.count(Caller::Address(address.parse().unwrap()), now).is_ok();
        assert!(call("2001:db8::1") && !call("2001:db8::2") && call("2001:db8:0:1::1"));
        assert!(call("192.0.2.1") && !call("::ffff:192.0.2.1") && call("192.0.2.2"));
    }

    #[test]
    fn clients_beyond_the_maximum_share_one_allowance() {
        let (limiter, start) = (limiter(1, 1), Instant::now());
        let call = |number: u32, at| limiter.count(Caller::Address(IpAddr::V4(number.into())), start + at).is_ok();
        for number in 0..MAX_CLIENTS as u32 {
            assert!(call(number, Duration::ZERO));
        }
        let more = MAX_CLIENTS as u32;
        assert!(call(more, Duration::ZERO), "the first client beyond the maximum");
        assert!(!call(more + 1, Duration::ZERO), "the second client shares its allowance");
        assert!(limiter.clients.lock().used_until.len() <= MAX_CLIENTS);
        assert!(call(more + 1, SWEEP) && call(more + 2, SWEEP), "entries of quiet clients were removed");
        assert!(limiter.clients.lock().used_until.len() <= MAX_CLIENTS);
    }
}
