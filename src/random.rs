//! Random numbers that nobody can guess: keys of hashes, identities, and what is to be told apart from all others.

/// A number from the operating system's generator.
///
/// # Panics
///
/// When the operating system has no generator, where nothing could be kept secret.
#[expect(clippy::expect_used, reason = "there is no way to go on without secrets")]
pub(crate) fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the operating system gives random numbers");
    u64::from_ne_bytes(bytes)
}
