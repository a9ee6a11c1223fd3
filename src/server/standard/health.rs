//! What `grpc.health.v1` answers.

use std::{sync::Arc, time::Duration};

use tonic_health::{ServingStatus, server::HealthReporter};

use crate::subject::SessionSubject;

/// They serve while reads, streams and keep-alives work.
const SERVICES: [&str; 3] = ["", "sessiond.v1.SessionService", "sessiond.v1.LeaseService"];

/// No service by itself, but a name under which health tells whether the registry can be changed. Replicas that share a storage
/// must not all leave the load balancer at once because it refuses changes, so the services above stay out of this.
const WRITE: &str = "sessiond.v1.SessionService/write";

/// How often the storage is asked.
const STORAGE_CHECK: Duration = Duration::from_millis(250);

/// Has gRPC's health follow the storage, as `/ready` and `/writable` do.
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

    /// What answers the calls.
    pub(crate) fn reporter(&self) -> &HealthReporter {
        &self.reporter
    }

    /// Never returns.
    pub(crate) async fn follow(self) {
        // Reported once more: the storage may have changed since it was first.
        let mut reported = None;
        loop {
            let state = self.state();
            if reported.replace(state) != Some(state) {
                self.report(state).await;
            }
            tokio::time::sleep(STORAGE_CHECK).await;
        }
    }

    /// Answers that nothing is served any more, and ends the streams that watch.
    pub(crate) async fn close(&self) {
        let nothing = State { serves: false, is_writable: false };
        self.report(nothing).await;
        // Streams that watch the health of a service end when it has none; who asks after that is told as before.
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
