//! How many calls a client may make.

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

/// How many clients are told apart at once. Those that come when there are so many share one allowance, until others have
/// been quiet: an attacker with many addresses neither fills the memory nor gets more than one client more.
const MAX_CLIENTS: usize = 65_536;

/// What is looked through for clients that have been quiet at most this often.
const SWEEP: Duration = Duration::from_secs(1);

/// Who makes a call, as far as calls are counted.
#[derive(Debug, Hash)]
pub(crate) enum Caller<'a> {
    /// By a token or a certificate.
    Named(&'a str),
    Address(IpAddr),
}

impl<'a> Caller<'a> {
    /// Who is at the other end, where no token is looked at.
    pub(crate) fn of(peer: &'a Peer) -> Self {
        match peer.certificate.as_deref() {
            Some([name, ..]) => Self::Named(name),
            _ => Self::Address(peer.address),
        }
    }

    /// One of the network that a client of IPv6 has to itself, and one that is both IPv4 and IPv6.
    fn of_network(self) -> Self {
        match self {
            Self::Address(IpAddr::V6(address)) => match address.to_ipv4_mapped() {
                Some(address) => Self::Address(address.into()),
                None => Self::Address(IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into())),
            },
            other => other,
        }
    }
}

/// A client may make so many calls a second for ever, and some more at once.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    /// Calls a second.
    pub per_second: NonZeroU32,
    /// How many calls may come at once after a time of quiet.
    pub burst: NonZeroU32,
}

/// Counts the calls of clients by the generic cell rate algorithm: of each it keeps the time at which all it was allowed so
/// far would be used up, had it come evenly.
pub(crate) struct RateLimiter {
    /// Of one call.
    interval: Duration,
    /// How far ahead of the clock a client may be.
    tolerance: Duration,
    hasher: RandomState,
    clients: Mutex<Clients>,
}

struct Clients {
    /// By the hash of who it is.
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

    /// Counts a call. When it is one too many, gives the time after which one more may be made.
    pub(crate) fn count(&self, caller: Caller<'_>, now: Instant) -> Result<(), Duration> {
        let client = self.hasher.hash_one(caller.of_network());
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
    /// Whether one more can be told from the others. A client that has used nothing up is as good as one never seen.
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
    fn a_client_has_its_burst_and_then_its_rate() {
        let (limiter, start) = (limiter(10, 3), Instant::now());
        let call = |name, at: u64| limiter.count(Caller::Named(name), start + Duration::from_millis(at));
        for _ in 0..3 {
            assert_eq!(call("a", 0), Ok(()));
        }
        assert_eq!(call("a", 0), Err(Duration::from_millis(100)));
        assert_eq!(call("a", 60), Err(Duration::from_millis(40)), "what is refused does not count");
        assert_eq!(call("a", 100), Ok(()));
        assert!(call("a", 100).is_err());
        assert_eq!(call("b", 100), Ok(()), "others have their own");
        // However long the quiet was, the burst is no longer.
        assert_eq!((0..9).filter(|_| call("a", 1 << 40).is_ok()).count(), 3);
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let (limiter, now) = (limiter(1, 1), Instant::now());
        let call = |address: &str| limiter.count(Caller::Address(address.parse().unwrap()), now).is_ok();
        assert!(call("2001:db8::1") && !call("2001:db8::2") && call("2001:db8:0:1::1"));
        assert!(call("192.0.2.1") && !call("::ffff:192.0.2.1") && call("192.0.2.2"));
    }

    #[test]
    fn no_more_clients_are_told_apart_than_may_be() {
        let (limiter, start) = (limiter(1, 1), Instant::now());
        let call = |number: u32, at| limiter.count(Caller::Address(IpAddr::V4(number.into())), start + at).is_ok();
        for number in 0..MAX_CLIENTS as u32 {
            assert!(call(number, Duration::ZERO));
        }
        let more = MAX_CLIENTS as u32;
        assert!(call(more, Duration::ZERO), "the first of the others");
        assert!(!call(more + 1, Duration::ZERO), "who shares with it");
        assert!(limiter.clients.lock().used_until.len() <= MAX_CLIENTS);
        assert!(call(more + 1, SWEEP) && call(more + 2, SWEEP), "those who were quiet made room");
        assert!(limiter.clients.lock().used_until.len() <= MAX_CLIENTS);
    }
}
