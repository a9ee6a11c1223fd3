//! Servers on tonic's generated service, which answer only `HasSession`.

use std::{net::TcpListener, sync::Arc};

use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sessiond::{
    proto::{
        BatchCreateSessionsRequest, BatchCreateSessionsResponse, BatchDestroySessionsRequest,
        BatchDestroySessionsResponse, BatchHasSessionsRequest, BatchHasSessionsResponse, BatchLookupSessionsRequest,
        BatchLookupSessionsResponse, CreateSessionRequest, CreateSessionResponse, DestroySessionRequest,
        DestroySessionResponse, HasSessionRequest, HasSessionResponse, LookupSessionRequest, LookupSessionResponse,
        SubscribeRequest, SubscribeResponse,
        session_service_server::{SessionService, SessionServiceServer},
    },
    session::SessionKey,
    storage::{
        SessionStorage,
        memory::{MemoryOptions, MemoryStorage},
    },
};
use tokio::{net::TcpStream, runtime};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{
    Request, Response, Status,
    codegen::Service as _,
    transport::{Server, server::TcpIncoming},
};

use super::floor;

/// Looks sessions up in a storage. Without a storage, every session exists.
struct Peer(Option<Arc<dyn SessionStorage>>);

fn no_op() -> SessionServiceServer<Peer> {
    SessionServiceServer::new(Peer(None))
}

fn lookup() -> SessionServiceServer<Peer> {
    SessionServiceServer::new(Peer(Some(Arc::new(MemoryStorage::new(MemoryOptions::default())))))
}

/// Serves as in tonic's guide: with tonic's server and router, on the multi-threaded runtime.
pub(crate) fn serve_stock(listener: TcpListener) {
    runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        Server::builder().add_service(no_op()).serve_with_incoming(incoming).await.unwrap();
    });
}

/// Serves with tonic's server and router, on a current-thread runtime per core.
pub(crate) fn serve_routed(listener: TcpListener) {
    let service = lookup();
    floor::spread_over_workers(listener, move |streams| {
        let streams = ReceiverStream::new(streams).map(TcpStream::from_std);
        let server = Server::builder().add_service(service.clone()).serve_with_incoming(streams);
        async move { server.await.unwrap() }
    });
}

/// Serves without tonic's server and router: hyper calls the generated service, on a current-thread runtime per core.
pub(crate) fn serve_direct(listener: TcpListener) {
    let service = lookup();
    floor::accept_on_workers(listener, move |stream| {
        let service = service.clone();
        let service = service_fn(move |request: http::Request<hyper::body::Incoming>| service.clone().call(request));
        let connection = http2::Builder::new(TokioExecutor::new())
            // Like sessiond.
            .auto_date_header(false)
            .serve_connection(TokioIo::new(stream), service);
        async move { drop::<Result<(), hyper::Error>>(connection.await) }
    });
}

macro_rules! unimplemented_calls {
    ($($name:ident($request:ty) -> $response:ty;)*) => {
        #[tonic::async_trait]
        impl SessionService for Peer {
            async fn has_session(
                &self,
                request: Request<HasSessionRequest>,
            ) -> Result<Response<HasSessionResponse>, Status> {
                let exists = match &self.0 {
                    None => true,
                    Some(storage) => {
                        let HasSessionRequest { auth_key_id, session_id } = request.into_inner();
                        let session_id = session_id.ok_or_else(|| Status::invalid_argument("session_id is missing"))?;
                        let exists = storage.has(&[SessionKey::new(auth_key_id, session_id)]).await;
                        exists.map_err(|error| Status::unavailable(error.to_string()))?[0]
                    }
                };
                Ok(Response::new(HasSessionResponse { exists }))
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
