//! Stands in for `otlp.rs` in a build without the feature `otlp`: there are no flags for it, and nothing is exported.

use std::{sync::Arc, time::Duration};

use clap::Args;
use sessiond::service::CallTracer;

use super::exit::CliError;

#[derive(Debug, Args)]
pub(crate) struct OtlpArgs {}

#[derive(Debug)]
pub(crate) enum Otlp {}

impl Otlp {
    pub(crate) fn start(_: &OtlpArgs) -> Result<Option<Self>, CliError> {
        Ok(None)
    }

    pub(crate) fn tracer(&self) -> Arc<dyn CallTracer> {
        match *self {}
    }

    pub(crate) async fn flush(self, _: Duration) {
        match self {}
    }
}
