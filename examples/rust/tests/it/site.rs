//! A site with a good page, a broken one, one that asks for a pause once, and one that never answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The server ends with the value.
pub(crate) struct Site {
    base: String,
    server: JoinHandle<()>,
}

impl Site {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let asked_for_a_pause = Arc::new(AtomicBool::new(false));
        let busy = async move || -> Response {
            if asked_for_a_pause.swap(true, Ordering::SeqCst) {
                "better now".into_response()
            } else {
                (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")]).into_response()
            }
        };
        let sitemap = format!("{base}/good\n\n{base}/broken\n{base}/busy\nno page\nftp://other/\n");
        let many: Vec<String> = (0..45).map(|n| format!("{base}/good?{n}")).collect();
        let many = many.join("\n");
        let router = Router::new()
            .route("/sitemap.txt", get(async || sitemap))
            .route("/many.txt", get(async || many))
            .route("/good", get(async || "12345"))
            .route("/broken", get(async || StatusCode::INTERNAL_SERVER_ERROR))
            .route("/silent", get(std::future::pending::<()>))
            .route("/busy", get(busy));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { base, server }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.base)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.server.abort();
    }
}
