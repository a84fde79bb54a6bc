//! How HTTP is served: HTTP/1.1, plain or over TLS, with a limit on everything that a client could hold on to.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::tls::ServerTls;

/// Headers and bytes beyond which a request is refused without a word.
const MAX_HEADERS: usize = 128;
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// How long to leave a listener alone that cannot accept, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How long clients are waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the whole head of a request, from the end of the one before on; before it, for a TLS handshake.
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
    /// `None`: plain HTTP. A listener speaks either, never both.
    pub tls: Option<ServerTls>,
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
        let connection = Connection {
            http: http.clone(),
            routes: routes.clone(),
            patience: server.patience,
            draining: server.draining.clone(),
            watcher: graceful.watcher(),
        };
        let acceptor = server.tls.as_ref().map(ServerTls::acceptor);
        tokio::spawn(async move {
            match acceptor {
                None => connection.answer(stream).await,
                Some(acceptor) => connection.answer_over_tls(stream, acceptor).await,
            }
            drop(place);
        });
    }
    graceful.shutdown().await;
    Ok(())
}

/// What it takes to answer a client.
struct Connection {
    http: Builder,
    routes: Router,
    patience: Patience,
    draining: CancellationToken,
    /// Holds up the end of serving.
    watcher: Watcher,
}

impl Connection {
    async fn answer_over_tls(self, stream: TcpStream, acceptor: TlsAcceptor) {
        let accepting = timeout(self.patience.head, acceptor.accept(stream));
        let accepted = tokio::select! {
            accepted = accepting => accepted,
            () = self.draining.cancelled() => return,
        };
        match accepted {
            Ok(Ok(stream)) => self.answer(stream).await,
            Ok(Err(error)) => tracing::debug!(%error, "a client's TLS handshake failed"),
            Err(_) => tracing::debug!("a client's TLS handshake took too long"),
        }
    }

    async fn answer(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = TowerToHyperService::new(self.routes);
        let connection = self.http.serve_connection(TokioIo::new(stream), service);
        if let Err(error) = self.watcher.watch(connection).await {
            tracing::debug!(%error, "a client's connection broke");
        }
    }
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
