//! A no-op service on tonic's generated server, which answers only `HasSession`.

use sessiond::proto::{
    BatchCreateSessionsRequest, BatchCreateSessionsResponse, BatchDestroySessionsRequest, BatchDestroySessionsResponse,
    BatchHasSessionsRequest, BatchHasSessionsResponse, BatchLookupSessionsRequest, BatchLookupSessionsResponse,
    CreateSessionRequest, CreateSessionResponse, DestroySessionRequest, DestroySessionResponse, HasSessionRequest,
    HasSessionResponse, LookupSessionRequest, LookupSessionResponse, SubscribeRequest, SubscribeResponse,
    session_service_server::{SessionService, SessionServiceServer},
};
use tonic::{Request, Response, Status};

pub(crate) struct Ping;

pub(crate) fn server() -> SessionServiceServer<Ping> {
    SessionServiceServer::new(Ping)
}

macro_rules! unimplemented_calls {
    ($($name:ident($request:ty) -> $response:ty;)*) => {
        #[tonic::async_trait]
        impl SessionService for Ping {
            async fn has_session(&self, _: Request<HasSessionRequest>) -> Result<Response<HasSessionResponse>, Status> {
                Ok(Response::new(HasSessionResponse { exists: true }))
            }

            type SubscribeStream = tokio_stream::Empty<Result<SubscribeResponse, Status>>;

            $(async fn $name(&self, _: Request<$request>) -> Result<Response<$response>, Status> {
                Err(Status::unimplemented("only HasSession is measured"))
            })*
        }
    };
}

unimplemented_calls! {
    lookup_session(LookupSessionRequest) -> LookupSessionResponse;
    batch_lookup_sessions(BatchLookupSessionsRequest) -> BatchLookupSessionsResponse;
    create_session(CreateSessionRequest) -> CreateSessionResponse;
    destroy_session(DestroySessionRequest) -> DestroySessionResponse;
    batch_has_sessions(BatchHasSessionsRequest) -> BatchHasSessionsResponse;
    batch_create_sessions(BatchCreateSessionsRequest) -> BatchCreateSessionsResponse;
    batch_destroy_sessions(BatchDestroySessionsRequest) -> BatchDestroySessionsResponse;
    subscribe(SubscribeRequest) -> Self::SubscribeStream;
}
