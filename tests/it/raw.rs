//! A raw HTTP/2 client, for requests that no generated client sends.

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use h2::{
    RecvStream, SendStream,
    client::{self, ResponseFuture, SendRequest},
};
use http::{Request, Response, StatusCode};
use prost::Message;
use sessiond::proto::HasSessionRequest;
use tokio::{net::TcpStream, sync::oneshot, task::JoinHandle};
use tonic::{Code, Status};

use crate::fake::soon;

pub(crate) const SERVICE: &str = "/sessiond.v1.SessionService";

/// An HTTP/2 connection. Dropping it cuts the connection.
pub(crate) struct Raw {
    sender: SendRequest<Bytes>,
    /// Open response streams that are not read.
    pub(crate) held: Vec<Response<RecvStream>>,
    hang: Option<oneshot::Sender<()>>,
    driver: JoinHandle<()>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) http: StatusCode,
    /// The gRPC status, from the trailers or from a Trailers-Only response.
    pub(crate) grpc: Option<Status>,
    pub(crate) body: Vec<u8>,
}

impl Raw {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        Self::with(addr, &client::Builder::new()).await
    }

    pub(crate) async fn with(addr: SocketAddr, builder: &client::Builder) -> Self {
        let socket = soon(TcpStream::connect(addr)).await.unwrap();
        let (sender, connection) = soon(builder.handshake(socket)).await.unwrap();
        let (hang, hung) = oneshot::channel::<()>();
        let driver = tokio::spawn(async move {
            let mut connection = connection;
            tokio::select! {
                _ = &mut connection => {}
                Ok(()) = hung => std::future::pending().await,
            }
        });
        Self { sender, held: Vec::new(), hang: Some(hang), driver }
    }

    /// Opens a response stream without reading it.
    pub(crate) async fn hold(&mut self, request: Request<()>, body: Bytes) {
        let response = self.begin(request, body).await.unwrap();
        self.held.push(soon(response).await.unwrap());
    }

    /// Stops reading and writing but leaves the connection open, as a process that hangs.
    pub(crate) fn hang(&mut self) {
        self.hang.take().expect("it hangs only once").send(()).expect("the connection is open");
    }

    /// Sends the headers of a request and leaves its body to the caller.
    pub(crate) async fn open(&mut self, request: Request<()>) -> (ResponseFuture, SendStream<Bytes>) {
        let mut sender = soon(self.sender.clone().ready()).await.expect("the connection is open");
        sender.send_request(request, false).expect("the request is valid HTTP/2")
    }

    /// Sends a whole request without waiting for the response.
    pub(crate) async fn begin(&mut self, request: Request<()>, body: Bytes) -> Result<ResponseFuture, h2::Error> {
        let (response, mut stream) = self.open(request).await;
        stream.send_data(body, true)?;
        Ok(response)
    }

    pub(crate) async fn send(&mut self, request: Request<()>, body: Bytes) -> Result<Answer, h2::Error> {
        let response = self.begin(request, body).await?;
        soon(answer(response)).await
    }

    /// Waits until the server has received everything sent so far, by making another call.
    pub(crate) async fn arrived(&mut self) {
        let request = HasSessionRequest { session_id: Some(0), auth_key_id: 0 };
        let answer = self.call(&format!("{SERVICE}/HasSession"), &request).await;
        assert_eq!(answer.grpc.map(|status| status.code()), Some(Code::Ok));
    }

    /// Waits until the server has ended the connection.
    pub(crate) async fn ended(&mut self) {
        let _ = (&mut self.driver).await;
    }

    /// Makes a unary gRPC call.
    pub(crate) async fn call(&mut self, path: &str, message: &impl Message) -> Answer {
        self.send(grpc(path), framed(message)).await.unwrap()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Returns the headers of a gRPC call.
pub(crate) fn grpc(path: &str) -> Request<()> {
    let uri = format!("http://sessiond{path}");
    let request = Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
    request.body(()).unwrap()
}

/// Encodes a message with its gRPC prefix.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(message.encoded_len() as u32);
    message.encode(&mut bytes).unwrap();
    bytes.freeze()
}

pub(crate) async fn answer(response: ResponseFuture) -> Result<Answer, h2::Error> {
    let (parts, mut stream) = response.await?.into_parts();
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    let trailers = stream.trailers().await?;
    let grpc = Status::from_header_map(trailers.as_ref().unwrap_or(&parts.headers));
    Ok(Answer { http: parts.status, grpc, body })
}
