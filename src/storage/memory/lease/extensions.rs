//! The extra time that leases get after outages.

use std::time::Duration;

/// The extensions given so far.
///
/// Each extension is for all leases that exist, but giving one takes constant time: a lease's new deadline is computed
/// only when its old one passes.
#[derive(Default)]
pub(super) struct Extensions {
    /// The number of extensions given.
    count: u32,
    /// When the last one was given.
    last: Duration,
    /// The number of an extension, and the time until which every older lease lives at least. If a later extension
    /// lasts longer, the earlier one is removed, so the times descend.
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

    /// Returns the number of extensions given. They do not apply to a deadline that is set now.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Applies extensions to a deadline that was set after `seen` of them.
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
    fn extended_deadlines_match_a_model_that_updates_every_lease() {
        let seconds = |most| Duration::from_secs(fastrand::u64(..most));
        for _ in 0..2000 {
            let mut extensions = Extensions::default();
            let mut now = Duration::ZERO;
            // For each lease: its deadline when set, its ttl, the number of extensions before, and the deadline it
            // should have.
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
