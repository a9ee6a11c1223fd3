//! Watches for panics in tasks that the process cannot work without.

use std::{
    sync::{Arc, OnceLock},
    thread,
};

/// Records the first panic among a set of essential tasks and threads. Clones share the same record.
///
/// A panic ends only its own task. Without this record the process would keep running and, for example, never expire a
/// lease again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vitals(Arc<OnceLock<&'static str>>);

impl Vitals {
    /// Runs a task, and records a panic in it.
    pub(crate) fn watch<F: Future>(&self, task: &'static str, future: F) -> impl Future<Output = F::Output> + use<F> {
        let watched = self.watched(task);
        async move {
            let _watched = watched;
            future.await
        }
    }

    /// Returns a value that a thread must hold while it runs.
    pub(crate) fn watched(&self, task: &'static str) -> Watched {
        Watched { task, vitals: self.clone() }
    }

    /// Returns the first task that panicked.
    pub(crate) fn failed(&self) -> Option<&'static str> {
        self.0.get().copied()
    }
}

/// Records a panic if it is dropped during one.
pub(crate) struct Watched {
    task: &'static str,
    vitals: Vitals,
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Aborting a task also drops this, but without a panic.
        if thread::panicking() {
            tracing::error!(task = self.task, "a task that the server needs has panicked");
            let _ = self.vitals.0.set(self.task);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn panic_of_a_task_is_recorded_and_an_abort_is_not() {
        let vitals = Vitals::default();
        let aborted = tokio::spawn(vitals.watch("aborted", pending::<()>()));
        tokio::task::yield_now().await;
        aborted.abort();
        assert!(aborted.await.unwrap_err().is_cancelled());
        tokio::spawn(vitals.watch("done", async {})).await.unwrap();
        assert_eq!(vitals.failed(), None);

        let panics = async {
            tokio::task::yield_now().await;
            panic!("on purpose");
        };
        assert!(tokio::spawn(vitals.watch("task", panics)).await.unwrap_err().is_panic());
        assert_eq!(vitals.failed(), Some("task"));
    }

    #[test]
    fn panic_of_a_thread_is_recorded() {
        let vitals = Vitals::default();
        let watched = vitals.watched("thread");
        let thread = thread::spawn(move || {
            let _watched = watched;
            panic!("on purpose");
        });
        thread.join().unwrap_err();
        assert_eq!(vitals.failed(), Some("thread"));
    }
}
