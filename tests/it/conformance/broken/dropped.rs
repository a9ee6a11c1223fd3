//! Notices when a call is dropped.

/// Runs the closure on drop, that is, also when the surrounding future is dropped.
pub(super) struct WhenDropped<F: FnMut()>(pub(super) F);

impl<F: FnMut()> Drop for WhenDropped<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
