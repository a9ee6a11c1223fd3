//! The time that outages give to leases.

use std::time::Duration;

/// The extensions that were given so far.
///
/// Each is for all leases that there are. To give one takes constant time all the same: what it means for a lease is
/// found out when the lease's deadline comes.
#[derive(Default)]
pub(super) struct Extensions {
    /// How many were given.
    count: u32,
    /// When the last one was given.
    last: Duration,
    /// Until when a lease lives at least that was there before this extension. Later ones that last no longer than an
    /// earlier one come behind it; earlier ones that a later one outlasts are left out.
    least: Vec<(u32, Duration)>,
}

impl Extensions {
    /// Gives every lease its ttl again, and at least `grace`.
    pub(super) fn give(&mut self, now: Duration, grace: Duration) {
        let until = now + grace;
        self.least.retain(|(_, least)| *least > until);
        self.least.push((self.count, until));
        self.count += 1;
        self.last = now;
    }

    /// How many were given. A deadline that is set now has no part in these.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Returns a deadline, set when `seen` extensions had been given, with the time that the others gave it.
    pub(super) fn extend(&self, deadline: Duration, ttl: Duration, seen: u32) -> Duration {
        match self.least.iter().find(|(number, _)| *number >= seen) {
            Some((_, least)) => deadline.max(self.last + ttl).max(*least),
            None => deadline,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_those_of_extensions_that_look_at_every_lease() {
        let seconds = |most| Duration::from_secs(fastrand::u64(..most));
        for _ in 0..2000 {
            let mut extensions = Extensions::default();
            let mut now = Duration::ZERO;
            // The deadline when it was set, the ttl, the extensions before, and the deadline that it has.
            let mut leases: Vec<(Duration, Duration, u32, Duration)> = Vec::new();
            for _ in 0..20 {
                now += seconds(30);
                if fastrand::bool() {
                    let ttl = seconds(60);
                    leases.push((now + ttl, ttl, extensions.count(), now + ttl));
                } else {
                    let grace = seconds(150);
                    extensions.give(now, grace);
                    for (_, ttl, _, deadline) in &mut leases {
                        *deadline = (*deadline).max(now + (*ttl).max(grace));
                    }
                }
                for (set, ttl, seen, deadline) in &leases {
                    assert_eq!(extensions.extend(*set, *ttl, *seen), *deadline);
                }
            }
        }
    }
}
