//! The hash that puts a session into its bucket, and into its place there.

use std::hash::{Hash, Hasher};

use siphasher::sip::SipHasher13;

use crate::{random::random_u64, session::SessionKey};

/// Ids are chosen by clients, who must not be able to make them collide.
///
/// Which bucket a session is in is told by SipHash-1-3 with a key by chance. It is what `RandomState` is, but for a key that
/// can be kept: what is on disk by bucket must be of the same bucket after a restart.
///
/// Its place in the bucket is told by two multiplications with other numbers by chance, at a fifth of the cost: every session is
/// hashed again when the table of its bucket grows. Were that one broken, what collides would still be spread over all buckets
/// by the other.
#[derive(Clone)]
pub(super) struct SessionHasher {
    across: SipHasher13,
    within: [u64; 4],
}

impl SessionHasher {
    pub(super) fn random() -> Self {
        Self::new(random_key())
    }

    pub(super) fn new([first, second]: [u64; 2]) -> Self {
        let ([a, b], [c, d]) = (random_key(), random_key());
        Self { across: SipHasher13::new_with_keys(first, second), within: [a, b, c, d | 1] }
    }

    /// Tells the buckets apart.
    pub(super) fn across(&self, session: &SessionKey) -> u64 {
        let mut hasher = self.across;
        session.hash(&mut hasher);
        hasher.finish()
    }

    /// Tells the sessions of a bucket apart.
    pub(super) fn within(&self, session: &SessionKey) -> u64 {
        let [a, b, c, d] = self.within;
        let folded = fold(session.session_id.0 as u64 ^ a, session.auth_key_id.0 as u64 ^ b);
        fold(folded ^ c, d)
    }
}

/// Both halves of a product, one over the other.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// A key that nobody can guess.
pub(in crate::storage) fn random_key() -> [u64; 2] {
    [random_u64(), random_u64()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is on disk by bucket must be of that bucket for whoever reads it.
    #[test]
    fn the_bucket_of_a_session_stays_what_it_was() {
        let hasher = SessionHasher::new([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]);
        let across = [SessionKey::new(0, 0), SessionKey::new(1, 2), SessionKey::new(-1, i64::MAX)];
        // By another implementation: SipHash-1-3 of both ids, the auth key's first, as little-endian bytes.
        let expected = [4629219987517208455, 7810086282998830284, 15770478261876137273];
        assert_eq!(across.map(|session| hasher.across(&session)), expected);
    }

    /// Ids as clients choose them, and as they would to have the multiplications make the same of them.
    #[test]
    fn regular_ids_are_scattered_within_a_bucket() {
        const COUNT: usize = 1 << 14;
        let families: [fn(i64) -> SessionKey; 7] = [
            |n| SessionKey::new(0, n),
            |n| SessionKey::new(n, 42),
            |n| SessionKey::new(n, n),
            |n| SessionKey::new(n, -n),
            |n| SessionKey::new(0, n << 48),
            |n| SessionKey::new(n << 48, n << 32),
            |n| SessionKey::new(-1, n * 1_000_003),
        ];
        for (family, key) in families.into_iter().enumerate() {
            let hasher = SessionHasher::random();
            let hashes: Vec<u64> = (0..COUNT as i64).map(|n| hasher.within(&key(n))).collect();
            // A table begins to look at the lowest bits, and tells entries apart by the highest seven.
            for (shift, bits) in [(0, 8), (0, 11), (57, 7)] {
                let mut counts = vec![0_i64; 1 << bits];
                hashes.iter().for_each(|hash| counts[(hash >> shift) as usize & ((1 << bits) - 1)] += 1);
                let mean = (COUNT >> bits) as i64;
                let most = *counts.iter().max().unwrap();
                // Eight deviations of what chance does.
                assert!((most - mean).pow(2) <= 64 * mean, "family {family}, bits {shift}+{bits}: {most} of {mean}");
            }
        }
    }
}
