use std::path::Path;

use lapin::types::{FieldTable, ShortString};
use proptest::prelude::*;
use serde_json::value::RawValue;

use super::*;
use crate::batch::Batch;
use crate::name::{Attempt, Key, PipelineName};
use crate::topology::{HEADER_ERROR, HEADER_REASON};

const KEY: &str = "0123456789abcdef0123456789abcdef";
const OTHER_KEY: &str = "fedcba9876543210fedcba9876543210";
const BODY: &[u8] = br#"[{"path":"/x"}]"#;

/// A folder with these files, and what signs with it.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn open(folder: &Path, mode: SigningMode) -> Result<Signing, String> {
    let config = SigningConfig {
        mode,
        keys_folder: Some(folder.to_owned()),
    };
    Signing::open(&config).map_err(|error| error.to_string())
}

fn signing(files: &[(&str, &str)]) -> Signing {
    open(folder(files).path(), SigningMode::Require).unwrap()
}

fn ours() -> Signing {
    signing(&[("2026-11", KEY), ("current", "2026-11\n")])
}

fn properties() -> BasicProperties {
    let batch = Batch {
        id: "0198c5a8-7a7e-7000-8000-000000000001".parse().unwrap(),
        run: "0198c5a8-7a7e-7000-8000-000000000002".parse().unwrap(),
        pipeline: PipelineName::new("hashes").unwrap(),
        key: Key::new("tenant-ä").unwrap(),
        attempt: Attempt::new(3),
        payload: RawValue::from_string("1".into()).unwrap(),
    };
    batch.properties(1_700_000_000)
}

fn with_header(properties: &BasicProperties, name: &str, value: AMQPValue) -> BasicProperties {
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.insert(name.into(), value);
    properties.clone().with_headers(headers)
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn signature(properties: &BasicProperties) -> String {
    match &properties.headers().as_ref().unwrap().inner()[HEADER_SIGNATURE] {
        AMQPValue::LongString(text) => text.to_string(),
        other => panic!("{other:?}"),
    }
}

/// Computed with Python's `hmac`, from the description in `signature`.
#[test]
fn a_signature_is_what_its_description_says() {
    let signed = ours().sign(Purpose::Work, properties(), BODY);
    assert_eq!(
        signature(&signed),
        "v1:2026-11:9f481d1ae5270c60b74996b83e9f1ddb7c3108815a9eaa284708c7af721ffc51"
    );
    ours().check(Purpose::Work, &signed, BODY).unwrap();
}

#[test]
fn one_purpose_never_passes_for_another() {
    let all = [
        Purpose::Work,
        Purpose::Outcomes,
        Purpose::Presence,
        Purpose::Control,
        Purpose::Questions,
        Purpose::Answers,
    ];
    let ours = ours();
    for purpose in all {
        let signed = ours.sign(purpose, properties(), BODY);
        for other in all {
            let believed = ours.check(other, &signed, BODY).is_ok();
            assert_eq!(believed, purpose == other, "{purpose:?} as {other:?}");
        }
    }
}

#[test]
fn what_is_not_signed_with_our_keys_is_refused_with_the_reason() {
    let ours = ours();
    let signed = ours.sign(Purpose::Work, properties(), BODY);
    let good = signature(&signed);
    let strangers = signing(&[("2026-11", OTHER_KEY), ("current", "2026-11")]);
    let unknown = signing(&[("2026-12", KEY), ("current", "2026-12")]);
    let marked = |signature: &str| with_header(&signed, HEADER_SIGNATURE, text(signature));
    let cases = [
        (properties(), "missing"),
        (BasicProperties::default(), "missing"),
        (marked(""), "malformed"),
        (marked("v1:2026-11"), "malformed"),
        (marked(&good.replace("v1", "v2")), "malformed"),
        (marked(&good[..good.len() - 2]), "malformed"),
        (marked(&format!("{good}:")), "malformed"),
        (marked(&format!("{good}00")), "malformed"),
        (
            marked(&good.to_uppercase().replace("V1", "v1")),
            "malformed",
        ),
        (
            with_header(&signed, HEADER_SIGNATURE, AMQPValue::Void),
            "malformed",
        ),
        (
            unknown.sign(Purpose::Work, properties(), BODY),
            "unknown_key",
        ),
        (strangers.sign(Purpose::Work, properties(), BODY), "wrong"),
    ];
    for (properties, reason) in cases {
        let error = ours.check(Purpose::Work, &properties, BODY).unwrap_err();
        assert_eq!(error.reason(), reason, "{properties:?}");
    }
}

#[test]
fn all_that_has_a_meaning_is_covered() {
    let ours = ours();
    let signed = ours.sign(Purpose::Work, properties(), BODY);
    let changed = [
        signed.clone().with_type("tidegate.batch.v2".into()),
        signed.clone().with_message_id("other".into()),
        signed.clone().with_correlation_id("other".into()),
        with_header(&signed, "x-tidegate-attempt", AMQPValue::LongUInt(4)),
        with_header(&signed, "x-tidegate-attempt", text("3")),
        with_header(&signed, "x-tidegate-key", text("tenant-b")),
        with_header(&signed, "x-tidegate-pipeline", text("other")),
        with_header(&signed, "x-tidegate-later", text("")),
        with_header(&signed, "x-tidegate-later", AMQPValue::Boolean(true)),
    ];
    for properties in changed {
        let error = ours.check(Purpose::Work, &properties, BODY).unwrap_err();
        assert_eq!(error.reason(), "wrong", "{properties:?}");
    }
    assert!(ours.check(Purpose::Work, &signed, b"").is_err());
    // Text that moves from one field to the next is another message.
    let moved = signed
        .clone()
        .with_message_id("0198c5a8-7a7e-7000-8000-0000000000010".into())
        .with_correlation_id("198c5a8-7a7e-7000-8000-000000000002".into());
    assert!(ours.check(Purpose::Work, &moved, BODY).is_err());
}

/// As after a stay in the dead queue.
#[test]
fn what_the_broker_and_the_dead_queue_add_changes_nothing() {
    let ours = ours();
    let signed = ours.sign(Purpose::Work, properties(), BODY);
    let mut passed_on = signed
        .with_delivery_mode(1)
        .with_priority(3)
        .with_timestamp(1);
    for (name, value) in [
        ("x-delivery-count", AMQPValue::LongLongInt(2)),
        ("x-death", AMQPValue::FieldTable(FieldTable::default())),
        ("x-first-death-reason", text("rejected")),
        ("traceparent", text("00-…")),
        ("x-tidegate-attempt", AMQPValue::LongLongInt(3)),
        (HEADER_REASON, text("undecodable")),
        (HEADER_ERROR, text("why")),
    ] {
        passed_on = with_header(&passed_on, name, value);
    }
    ours.check(Purpose::Work, &passed_on, BODY).unwrap();
}

#[test]
fn observing_refuses_nothing_and_off_does_nothing() {
    let keys = folder(&[("2026-11", KEY), ("current", "2026-11")]);
    let observing = open(keys.path(), SigningMode::Observe).unwrap();
    observing.check(Purpose::Work, &properties(), BODY).unwrap();
    let signed = observing.sign(Purpose::Work, properties(), BODY);
    ours().check(Purpose::Work, &signed, BODY).unwrap();

    let off = open(Path::new("/does/not/exist"), SigningMode::Off).unwrap();
    assert_eq!(off.sign(Purpose::Work, properties(), BODY), properties());
    off.check(Purpose::Work, &properties(), BODY).unwrap();
}

#[test]
fn folders_that_cannot_work_are_refused_without_repeating_a_key() {
    let long = "x".repeat(5_000);
    let current = ("current", "a");
    let many: Vec<(String, &str)> = (0..17).map(|n| (format!("k{n}"), KEY)).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(id, key)| (id.as_str(), *key)).collect();
    let cases: [(&[(&str, &str)], &str); 9] = [
        (&[], "current"),
        (&[("a", KEY)], "current"),
        (&[current], "holds \"a\""),
        (&[("b", KEY), current], "one of b"),
        (&[("a", KEY), ("current", KEY)], "one of a"),
        (&[("a", "hunter2"), current], "openssl rand"),
        (&[("a", &long), current], "holds no key"),
        (&[("a b", KEY), current], "no key id"),
        (&many, "more than 16 keys"),
    ];
    for (files, expected) in cases {
        let error = open(folder(files).path(), SigningMode::Require).unwrap_err();
        assert!(error.starts_with("signing.keys_folder: "), "{error}");
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(
            !error.contains(KEY) && !error.contains("hunter2"),
            "{error}"
        );
    }
    let error = open(Path::new("/does/not/exist"), SigningMode::Observe).unwrap_err();
    assert!(error.contains("/does/not/exist"), "{error}");
    let folderless = SigningConfig {
        mode: SigningMode::Require,
        keys_folder: None,
    };
    assert!(Signing::open(&folderless).is_err());
}

#[test]
fn keys_do_not_print() {
    let printed = format!("{:?}", ours());
    assert!(
        printed.contains("2026-11") && !printed.contains(KEY),
        "{printed}"
    );
}

#[tokio::test(start_paused = true)]
async fn keys_are_rotated_while_it_runs_and_broken_folders_change_nothing() {
    let keys = folder(&[("old", KEY), ("current", "old")]);
    let write = |name: &str, text: &str| std::fs::write(keys.path().join(name), text).unwrap();
    let signing = open(keys.path(), SigningMode::Require).unwrap();
    let signed_before = signing.sign(Purpose::Work, properties(), BODY);
    let draining = CancellationToken::new();
    let fresh = tokio::spawn(signing.clone().keep_fresh(draining.clone()));
    let signs_with = async |id: &str| {
        for _ in 0..100 {
            tokio::time::sleep(KEYS_EVERY).await;
            let signed = signing.sign(Purpose::Work, properties(), BODY);
            if signature(&signed).contains(&format!(":{id}:")) {
                return true;
            }
        }
        false
    };
    write("new", OTHER_KEY);
    write("current", "new");
    assert!(signs_with("new").await);
    signing.check(Purpose::Work, &signed_before, BODY).unwrap();

    write("current", "nobody");
    tokio::time::sleep(3 * KEYS_EVERY).await;
    assert!(signs_with("new").await, "the old ones stay");

    write("current", "new");
    std::fs::remove_file(keys.path().join("old")).unwrap();
    let mut error = None;
    for _ in 0..100 {
        tokio::time::sleep(KEYS_EVERY).await;
        error = signing.check(Purpose::Work, &signed_before, BODY).err();
        if error.is_some() {
            break;
        }
    }
    assert_eq!(error, Some(SignatureError::UnknownKey("old".into())));
    draining.cancel();
    fresh.await.unwrap().unwrap();
}

/// Changes one byte of `text`.
fn flipped(text: &str, at: prop::sample::Index, mask: u8) -> String {
    let mut bytes = text.as_bytes().to_vec();
    let at = at.index(bytes.len());
    bytes[at] ^= mask;
    String::from_utf8(bytes).unwrap()
}

fn word() -> impl Strategy<Value = String> {
    "[ -~]{1,40}"
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whichever byte of what is covered, or of the signature, changes.
    #[test]
    fn any_single_byte_that_changes_is_noticed(
        place in 0..8_usize,
        at: prop::sample::Index,
        // Of ASCII, so that text stays text.
        mask in 1..=0x7f_u8,
        (kind, id, run) in (word(), word(), word()),
        (name, value) in ("x-tidegate-[a-z]{1,10}", word()),
        number: u32,
        body in prop::collection::vec(any::<u8>(), 1..200),
    ) {
        let ours = ours();
        let short = |text: &str| ShortString::from(text);
        let message = |kind: &str, id: &str, run: &str, name: &str, value: &str, number: u32| {
            let mut headers = FieldTable::default();
            headers.insert("x-tidegate-number".into(), AMQPValue::LongUInt(number));
            headers.insert(name.into(), text(value));
            BasicProperties::default()
                .with_type(short(kind))
                .with_message_id(short(id))
                .with_correlation_id(short(run))
                .with_headers(headers)
        };
        let original = message(&kind, &id, &run, &name, &value, number);
        let signed = ours.sign(Purpose::Outcomes, original, &body);
        prop_assert!(ours.check(Purpose::Outcomes, &signed, &body).is_ok());
        let seal = signature(&signed);

        let (mut body, mut seal_now) = (body, seal.clone());
        let flip = |text: &str| flipped(text, at, mask);
        let changed = match place {
            0 => message(&flip(&kind), &id, &run, &name, &value, number),
            1 => message(&kind, &flip(&id), &run, &name, &value, number),
            2 => message(&kind, &id, &flip(&run), &name, &value, number),
            3 => message(&kind, &id, &run, &flip(&name), &value, number),
            4 => message(&kind, &id, &run, &name, &flip(&value), number),
            5 => message(&kind, &id, &run, &name, &value, number ^ (1 << at.index(32))),
            _ => message(&kind, &id, &run, &name, &value, number),
        };
        match place {
            6 => seal_now = flip(&seal),
            7 => {
                let at = at.index(body.len());
                body[at] ^= mask;
            }
            _ => {}
        }
        let changed = with_header(&changed, HEADER_SIGNATURE, text(&seal_now));
        prop_assert!(ours.check(Purpose::Outcomes, &changed, &body).is_err());
    }
}
