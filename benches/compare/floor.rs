//! Minimal servers, which show what the kernel, tokio and h2 cost on their own.

use std::net::{SocketAddr, TcpListener};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime,
    sync::{mpsc, watch},
};

use super::wire;

/// The size of 1,000 events of sessiond, including a frame header.
pub(crate) const PUBLICATION: usize = 13_040;

/// Accepts connections forever, and spreads them evenly over as many worker threads as there are cores.
pub(crate) fn accept_on_workers<F>(listener: TcpListener, serve: impl Fn(TcpStream) -> F + Clone + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    spread_over_workers(listener, move |mut connections| {
        let serve = serve.clone();
        async move {
            while let Some(stream) = connections.recv().await {
                tokio::spawn(serve(TcpStream::from_std(stream).unwrap()));
            }
        }
    });
}

/// Accepts connections forever, and sends each to one of as many workers as there are cores.
pub(crate) fn spread_over_workers<F>(
    listener: TcpListener,
    work: impl Fn(mpsc::Receiver<std::net::TcpStream>) -> F + Clone + Send + 'static,
) where
    F: Future<Output = ()>,
{
    let workers = std::thread::available_parallelism().unwrap().get();
    let mut inlets = Vec::new();
    for _ in 0..workers {
        let (inlet, connections) = mpsc::channel(64);
        inlets.push(inlet);
        let work = work.clone();
        std::thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { work(connections).await });
        });
    }
    runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        for inlet in inlets.iter().cycle() {
            let (stream, _): (TcpStream, SocketAddr) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            inlet.send(stream.into_std().unwrap()).await.unwrap();
        }
    });
}

/// The message `HasSessionResponse { exists: true }`.
const EXISTS: &[u8] = &[0, 0, 0, 0, 2, 8, 1];

/// Serves calls with the h2 crate alone, on a current-thread runtime per core.
pub(crate) fn serve_h2(listener: TcpListener) {
    accept_on_workers(listener, answer_all);
}

/// Reads each request to its end, then answers it.
async fn answer_all(stream: TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            let mut body = request.into_body();
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
            }
            let response = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let Ok(mut send) = respond.send_response(response, false) else { return };
            let _ = send.send_data(Bytes::from_static(EXISTS), false);
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            let _ = send.send_trailers(trailers);
        });
    }
}

/// Serves calls without HTTP/2: takes each read for one call, and writes the bytes of an answer. This is correct with
/// one call in flight per connection.
pub(crate) fn serve_blindly(listener: TcpListener) {
    accept_on_workers(listener, answer_blindly);
}

async fn answer_blindly(mut stream: TcpStream) {
    let mut request = [0; 4096];
    for call in 0.. {
        let is_read = matches!(stream.read(&mut request).await, Ok(1..));
        if !is_read || stream.write_all(&wire::answer(call, EXISTS)).await.is_err() {
            break;
        }
    }
}

/// Serves a fan-out. For each byte that a writer sends, writes one publication to every connection that has sent
/// nothing, and several together if it is behind. A new connection receives one byte as a greeting.
pub(crate) fn serve_fan_out(listener: TcpListener) {
    let (published, _) = watch::channel(0_u64);
    accept_on_workers(listener, move |stream| fan_out(stream, published.clone()));
}

async fn fan_out(mut stream: TcpStream, published: watch::Sender<u64>) {
    const AT_ONCE: usize = 5;
    let bytes = vec![0; AT_ONCE * PUBLICATION];
    let mut publications = published.subscribe();
    let mut sent = *publications.borrow_and_update();
    // The greeting: this connection receives every publication from now on.
    if stream.write_all(&[0]).await.is_err() {
        return;
    }
    let mut is_writer = false;
    let mut asked = [0; 4096];
    loop {
        tokio::select! {
            read = stream.read(&mut asked) => match read {
                Ok(count @ 1..) => {
                    is_writer = true;
                    published.send_modify(|published| *published += count as u64);
                }
                _ => return,
            },
            _ = publications.changed(), if !is_writer => loop {
                let behind = (*publications.borrow_and_update() - sent) as usize;
                if behind == 0 {
                    break;
                }
                let some = behind.min(AT_ONCE);
                if stream.write_all(&bytes[..some * PUBLICATION]).await.is_err() {
                    return;
                }
                sent += some as u64;
            },
        }
    }
}
