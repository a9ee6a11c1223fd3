//! How the calls of a connection run.

use std::{
    pin::Pin,
    task::{Context, Waker},
};

use hyper::rt::Executor;

/// Polls a call where it comes in, and makes a task only of one that has to wait.
///
/// Most calls are answered at once. A task for each costs its memory, a turn of the scheduler, and a second turn of the
/// connection, which has to be woken to send what the task left for it.
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
