//! Reports the state of the storage as `grpc.health.v1`.

use std::{sync::Arc, time::Duration};

use tonic_health::{ServingStatus, server::HealthReporter};

use crate::subject::SessionSubject;

/// The services that are SERVING while reads, streams and keep-alives work.
const SERVICES: [&str; 3] = ["", "sessiond.v1.SessionService", "sessiond.v1.LeaseService"];

/// The health name that is SERVING while the registry can be changed.
///
/// It is separate from the services above: if a shared storage refuses changes, its replicas must not all leave the
/// load balancer at once.
const WRITE: &str = "sessiond.v1.SessionService/write";

/// How often the state of the storage is checked.
const STORAGE_CHECK: Duration = Duration::from_millis(250);

/// Keeps the health service in step with the storage. `/ready` and `/writable` report the same states.
#[derive(Clone)]
pub(crate) struct Health {
    reporter: HealthReporter,
    subject: Arc<SessionSubject>,
}

impl Health {
    pub(crate) async fn new(subject: Arc<SessionSubject>) -> Self {
        let health = Self { reporter: HealthReporter::new(), subject };
        health.report(health.state()).await;
        health
    }

    /// Returns the reporter that the health service reads.
    pub(crate) fn reporter(&self) -> &HealthReporter {
        &self.reporter
    }

    /// Follows the state of the storage. Never returns.
    pub(crate) async fn follow(self) {
        // Report the state again at the start: it may have changed since the first report.
        let mut reported = None;
        loop {
            let state = self.state();
            if reported.replace(state) != Some(state) {
                self.report(state).await;
            }
            tokio::time::sleep(STORAGE_CHECK).await;
        }
    }

    /// Reports that nothing is served any more, and ends the watch streams.
    pub(crate) async fn close(&self) {
        let nothing = State { serves: false, is_writable: false };
        self.report(nothing).await;
        // Clearing a status ends the streams that watch it. Later calls get NOT_SERVING again from the second report.
        for service in SERVICES.into_iter().chain([WRITE]) {
            self.reporter.clone().clear_service_status(service).await;
        }
        self.report(nothing).await;
    }

    fn state(&self) -> State {
        State { serves: self.subject.is_following(), is_writable: self.subject.writability().refusal().is_none() }
    }

    async fn report(&self, state: State) {
        let status = |serves| if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in SERVICES {
            self.reporter.set_service_status(service, status(state.serves)).await;
        }
        self.reporter.set_service_status(WRITE, status(state.is_writable)).await;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    serves: bool,
    is_writable: bool,
}
