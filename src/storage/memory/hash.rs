//! The hash that puts a session into its bucket, and into its place there.

use std::hash::{BuildHasher, RandomState};

use siphasher::sip::SipHasher13;

/// SipHash-1-3 with a key by chance: ids are chosen by clients, who must not be able to make them collide.
///
/// It is what `RandomState` is, but for a key that can be kept: what is on disk by bucket must be of the same bucket after
/// a restart.
#[derive(Clone)]
pub(super) struct SessionHasher(SipHasher13);

impl SessionHasher {
    pub(super) fn random() -> Self {
        Self::new(random_key())
    }

    pub(super) fn new([first, second]: [u64; 2]) -> Self {
        Self(SipHasher13::new_with_keys(first, second))
    }
}

/// A key that nobody can guess. The standard library has no other source of such numbers.
pub(in crate::storage) fn random_key() -> [u64; 2] {
    let random = RandomState::new();
    [random.hash_one(0), random.hash_one(1)]
}

impl BuildHasher for SessionHasher {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        self.0
    }
}
