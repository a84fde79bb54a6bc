//! What is said about what was found.

use super::*;
use shared::config::Span;
use shared::name::PipelineName;

#[test]
fn long_deadlines_and_deep_buffers_are_told() {
    let mut config = Config::default();
    assert_eq!(
        consumer_timeout(&config).finding,
        Finding::Ok,
        "no pipelines"
    );
    let pipeline = PipelineName::new("slow").unwrap();
    config.pipelines.entry(pipeline).or_default().deadline = Span::seconds(5 * 60);
    let fine = consumer_timeout(&config);
    assert_eq!(fine.finding, Finding::Ok, "{fine:?}");
    assert!(fine.detail.contains("slow may run for 300s"), "{fine:?}");
    config.worker.slots = 4;
    let deep = consumer_timeout(&config);
    assert_eq!(deep.finding, Finding::Warn, "{deep:?}");
    assert!(deep.advice.unwrap().contains("5100000 ms"));
}

#[test]
fn what_is_not_protected_is_told_with_its_key() {
    let mut config = Config::default();
    let fine = protection(&config);
    assert_eq!(fine.finding, Finding::Ok, "{fine:?}");
    config.broker.url = "amqp://user:hunter2@rabbit.example/v".into();
    let plain = protection(&config);
    assert_eq!(plain.finding, Finding::Warn, "{plain:?}");
    assert!(plain.detail.starts_with("broker.url: "), "{plain:?}");
    assert!(!plain.detail.contains("hunter2"), "{plain:?}");
}
