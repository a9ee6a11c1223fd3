//! The services beside our own: health (`grpc.health.v1`) and reflection (`grpc.reflection.v1` and `v1alpha`).

mod health;

use std::{convert::Infallible, fmt};

use http::{Request, Response};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic_health::{
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};
use tower::{ServiceExt, util::BoxCloneSyncService};

use crate::proto::FILE_DESCRIPTOR_SET;

pub(super) use self::health::Health;

type Boxed = BoxCloneSyncService<Request<Incoming>, Response<Body>, Infallible>;

/// The prefix of the paths of the health service, which is open to all.
pub(super) const HEALTH: &str = "/grpc.health.v1.Health/";

/// The services that are called now and then: dispatched by the name in the path.
pub(super) struct Standard(Vec<(&'static str, Boxed)>);

impl Standard {
    pub(super) fn new(health: &HealthReporter) -> Self {
        let health = HealthServer::new(HealthService::from_health_reporter(health.clone()));
        let mut services = vec![(HEALTH, Boxed::new(health))];
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // The details of errors: tools can only show what they know the type of.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        // They fail only for descriptors that cannot be decoded, and ours are made by the build; a test asks both.
        if let Ok(reflection) = builder().build_v1() {
            services.push(("/grpc.reflection.v1.ServerReflection/", Boxed::new(reflection)));
        }
        if let Ok(reflection) = builder().build_v1alpha() {
            services.push(("/grpc.reflection.v1alpha.ServerReflection/", Boxed::new(reflection)));
        }
        Self(services)
    }

    /// Answers a request to one of the services. Gives back one that is to none of them.
    pub(super) async fn call(&self, request: Request<Incoming>) -> Result<Response<Body>, Box<Request<Incoming>>> {
        let path = request.uri().path();
        let Some((_, service)) = self.0.iter().find(|(prefix, _)| path.starts_with(prefix)) else {
            return Err(Box::new(request));
        };
        let Ok(response) = service.clone().oneshot(request).await;
        Ok(response)
    }
}

impl fmt::Debug for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(path, _)| path)).finish()
    }
}
