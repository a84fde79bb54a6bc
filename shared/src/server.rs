//! How HTTP is served: HTTP/1.1 with a limit on everything that a client could hold on to.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Headers and bytes beyond which a request is refused without a word.
const MAX_HEADERS: usize = 128;
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// How long to leave a listener alone that cannot accept, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How long clients are waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the whole head of a request, from the end of the one before on.
    pub head: Duration,
    /// For the next piece of a body.
    pub body: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            body: Duration::from_secs(30),
        }
    }
}

/// Where and how much.
pub struct Server {
    /// Bound already.
    pub listener: TcpListener,
    /// Most connections at a time; more wait.
    pub max_connections: u32,
    /// With clients.
    pub patience: Patience,
    /// Ends it: requests under way are finished.
    pub draining: CancellationToken,
}

/// Serves until draining. Whoever builds the routes sees to [`Patience::body`].
///
/// # Panics
/// Never: the semaphore is not closed.
pub async fn serve(routes: Router, server: Server) -> std::io::Result<()> {
    let mut http = Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(server.patience.head)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES);
    let places = Arc::new(Semaphore::new(
        usize::try_from(server.max_connections).unwrap_or(Semaphore::MAX_PERMITS),
    ));
    let graceful = GracefulShutdown::new();
    loop {
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place.expect("nobody closes it"),
            () = server.draining.cancelled() => break,
        };
        let stream = tokio::select! {
            stream = accept(&server.listener) => stream,
            () = server.draining.cancelled() => break,
        };
        let service = TowerToHyperService::new(routes.clone());
        let connection = http.serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a client's connection broke");
            }
            drop(place);
        });
    }
    graceful.shutdown().await;
    Ok(())
}

/// The next connection. What keeps one from being accepted passes, or is the client's own.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are written whole: waiting for more would only delay them.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
