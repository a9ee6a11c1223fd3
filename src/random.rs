//! Unpredictable random numbers, for hash keys, ids and marks.

/// Returns a random number from the operating system.
///
/// # Panics
///
/// Panics if the operating system provides no random numbers: nothing could be kept secret then.
#[expect(clippy::expect_used, reason = "nothing could be kept secret without random numbers")]
pub(crate) fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the operating system provides random numbers");
    u64::from_ne_bytes(bytes)
}
