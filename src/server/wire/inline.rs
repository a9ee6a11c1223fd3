//! Runs the calls of a connection.

use std::{
    pin::Pin,
    task::{Context, Waker},
};

use hyper::rt::Executor;

/// Polls a call where it arrives, and spawns a task only if the call has to wait.
///
/// Most calls are answered immediately. A task for each would cost its memory, a turn of the scheduler, and a second
/// turn of the connection, which the task would have to wake to send the response.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inline;

impl<F> Executor<F> for Inline
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, call: F) {
        let mut call: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(call);
        // Nobody is to be woken for this poll: the task polls once more, with a waker of its own.
        let mut context = Context::from_waker(Waker::noop());
        if call.as_mut().poll(&mut context).is_pending() {
            tokio::spawn(call);
        }
    }
}
