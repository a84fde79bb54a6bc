//! Which images run. `tests/containers.sh` builds them, or has been told which ones there are.

/// Names the tag of Tidegate's images.
pub const TAG_VARIABLE: &str = "TIDEGATE_TEST_TAG";
/// Names RabbitMQ's version.
pub const RABBITMQ_VARIABLE: &str = "TIDEGATE_TEST_RABBITMQ";

/// PostgreSQL's image.
pub const POSTGRES: &str = "tidegate-test/postgres:15";
/// The programs, each of which has an image; the emulator is only for the demo and for tests.
pub const PROGRAMS: [&str; 3] = ["coordinator", "worker", "cli"];

/// The image of `coordinator`, `worker`, `cli` or `emulator`.
#[must_use]
pub fn of(program: &str) -> String {
    format!("tidegate-{program}:{}", tag())
}

/// The tag that Tidegate's images have.
#[must_use]
pub fn tag() -> String {
    std::env::var(TAG_VARIABLE).unwrap_or_else(|_| "test".to_owned())
}

/// RabbitMQ's image.
#[must_use]
pub fn rabbitmq() -> String {
    let version = std::env::var(RABBITMQ_VARIABLE);
    format!(
        "tidegate-test/rabbitmq:{}",
        version.as_deref().unwrap_or("4.0")
    )
}
