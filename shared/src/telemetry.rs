//! Logs to stderr, metrics to Prometheus.

use std::convert::Infallible;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Environment variable with the log filter, such as `info` or `worker=debug,warn`.
pub const LOG_VARIABLE: &str = "TIDEGATE_LOG";
/// What libraries may log unless the filter names them. lapin stays silent: it logs as errors what it also
/// returns as errors, and a failure is logged once, where it is handled.
const LIBRARIES: &str = "lapin=off,sqlx=warn";

/// Starts logging to stderr, with `default_filter` unless the environment has another. Call once, first
/// thing in `main`.
pub fn init_logs(default_filter: &str) {
    let filter = std::env::var(LOG_VARIABLE).unwrap_or_else(|_| default_filter.to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(format!("{LIBRARIES},{filter}")))
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}

/// How often what histograms gathered is summed up.
const UPKEEP: Duration = Duration::from_secs(5);

/// Starts collecting metrics, and says what those mean that both programs have. The handle renders them for
/// `/metrics`, and needs its [upkeep].
///
/// # Errors
/// When a recorder is installed already.
pub fn init_metrics() -> anyhow::Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new().install_recorder()?;
    metrics::describe_gauge!(
        "tidegate_certificate_expires_seconds",
        "When the first of a file's certificates ends, in seconds since 1970; as last read."
    );
    Ok(handle)
}

/// Sums up what histograms gathered, until draining. Otherwise only a scrape would, and where nobody scrapes
/// every sample would be kept.
pub async fn upkeep(
    metrics: PrometheusHandle,
    draining: CancellationToken,
) -> Result<(), Infallible> {
    while draining
        .run_until_cancelled(tokio::time::sleep(UPKEEP))
        .await
        .is_some()
    {
        metrics.run_upkeep();
    }
    Ok(())
}
