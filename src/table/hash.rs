//! The hashes that choose a session's table, and its place in it.

use std::hash::{Hash, Hasher};

use siphasher::sip::SipHasher13;

use crate::{random::random_u64, session::SessionKey};

/// Hashes sessions with secret keys. Clients choose the ids, and must not be able to make them collide.
///
/// The bucket is chosen by SipHash-1-3 with a random key. This is the algorithm of `RandomState`, but with a key that
/// can be stored: what is on disk for a bucket must belong to the same bucket after a restart.
///
/// The place in the bucket is chosen by two multiplications with other random numbers, which cost a fifth of SipHash.
/// Every session is hashed again when its bucket's table grows. If this hash were broken, colliding sessions would
/// still be spread over all buckets by the other.
#[derive(Clone)]
pub(crate) struct SessionHasher {
    across: SipHasher13,
    within: [u64; 4],
}

impl SessionHasher {
    pub(crate) fn random() -> Self {
        Self::new(random_key())
    }

    pub(crate) fn new([first, second]: [u64; 2]) -> Self {
        let ([a, b], [c, d]) = (random_key(), random_key());
        Self { across: SipHasher13::new_with_keys(first, second), within: [a, b, c, d | 1] }
    }

    /// Returns the hash that chooses the bucket.
    pub(crate) fn across(&self, session: &SessionKey) -> u64 {
        let mut hasher = self.across;
        session.hash(&mut hasher);
        hasher.finish()
    }

    /// Returns the hash that chooses the place within a bucket.
    pub(crate) fn within(&self, session: &SessionKey) -> u64 {
        let [a, b, c, d] = self.within;
        let folded = fold(session.session_id.0 as u64 ^ a, session.auth_key_id.0 as u64 ^ b);
        fold(folded ^ c, d)
    }
}

/// XORs the two halves of a product.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// Returns a secret random key.
pub(crate) fn random_key() -> [u64; 2] {
    [random_u64(), random_u64()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files store sessions by bucket, so a session's bucket must never change.
    #[test]
    fn bucket_of_a_session_never_changes() {
        let hasher = SessionHasher::new([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]);
        let across = [SessionKey::new(0, 0), SessionKey::new(1, 2), SessionKey::new(-1, i64::MAX)];
        // Computed with another implementation: SipHash-1-3 of both ids, the auth key's first, as little-endian bytes.
        let expected = [4629219987517208455, 7810086282998830284, 15770478261876137273];
        assert_eq!(across.map(|session| hasher.across(&session)), expected);
    }

    /// Uses ids that clients are likely to choose, and ids chosen to make the multiplications collide.
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
            // A table starts its search at the lowest bits, and distinguishes entries by the highest seven.
            for (shift, bits) in [(0, 8), (0, 11), (57, 7)] {
                let mut counts = vec![0_i64; 1 << bits];
                hashes.iter().for_each(|hash| counts[(hash >> shift) as usize & ((1 << bits) - 1)] += 1);
                let mean = (COUNT >> bits) as i64;
                let most = *counts.iter().max().unwrap();
                // At most eight standard deviations from the mean.
                assert!((most - mean).pow(2) <= 64 * mean, "family {family}, bits {shift}+{bits}: {most} of {mean}");
            }
        }
    }
}
