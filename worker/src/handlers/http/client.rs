//! The client of one pipeline: its own pool of connections, to addresses that were checked.

use std::sync::Arc;
use std::time::Duration;

use reqwest::redirect;
use shared::config::PipelineConfig;
use shared::net::Addresses;
use url::Url;

/// Idle connections live shorter than servers' own limits, so that few requests meet a closed one.
const POOL_IDLE: Duration = Duration::from_secs(50);

pub(super) fn new(url: &Url, config: &PipelineConfig) -> Result<reqwest::Client, reqwest::Error> {
    let addresses = Addresses::allowing_private(config.allow_private);
    let client = reqwest::Client::builder()
        .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(config.connect_timeout.get())
        .pool_idle_timeout(POOL_IDLE)
        .tcp_nodelay(true)
        .gzip(true)
        // Neither leads anywhere that was not checked.
        .redirect(redirect::Policy::none())
        .no_proxy()
        .dns_resolver(Arc::new(addresses));
    if url.scheme() == "http" {
        // Works where no certificates are installed, too.
        client.tls_certs_only([]).build()
    } else {
        client.build()
    }
}
