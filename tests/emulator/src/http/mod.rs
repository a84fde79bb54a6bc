//! The server: sockets, connections, requests. HTTP/1.1 and HTTP/2 without TLS on the same port.

mod body;
mod service;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::App;
use wire::{Cut, Wire};

/// Requests that one HTTP/2 connection may have under way.
const MAX_H2_STREAMS: u32 = 1_000;
/// After a failed accept (out of descriptors, mostly) the next try waits this long.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// Accepts connections until `stop`, then ends those that are open.
pub(crate) async fn run(
    app: Arc<App>,
    listener: TcpListener,
    url: Arc<str>,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                app.stats().connections += 1;
                connections.spawn(connection(
                    Arc::clone(&app),
                    stream,
                    Arc::clone(&url),
                    stop.clone(),
                ));
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
    connections.close();
    connections.wait().await;
}

async fn connection(app: Arc<App>, stream: TcpStream, url: Arc<str>, stop: CancellationToken) {
    // Small answers must not wait for the client's acknowledgements.
    let _ = stream.set_nodelay(true);
    let cut = Cut::default();
    let io = TokioIo::new(Wire::new(stream, cut.clone()));
    let for_requests = cut.clone();
    let service = service_fn(move |request| {
        service::serve(
            Arc::clone(&app),
            for_requests.clone(),
            Arc::clone(&url),
            request,
        )
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(MAX_H2_STREAMS);
    let serving = builder.serve_connection(io, service);
    // However a connection ends, it is the client who has to cope.
    tokio::select! {
        _ = serving => {}
        () = cut.happened() => {}
        () = stop.cancelled() => {}
    }
}

/// The address that clients use.
pub(crate) fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}
