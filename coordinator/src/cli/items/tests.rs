use std::io::{BufReader, Cursor, Read};

use shared::payload::{MAX_DEPTH, MAX_PAYLOAD_BYTES};

use super::batches::{MAX_OPEN_BYTES, NewBatch};
use super::item::ItemProblem;
use super::*;

fn read(
    input: &[u8],
    key_field: Option<&str>,
    batch_size: usize,
) -> Result<Vec<NewBatch>, ItemsError> {
    let grouping = Grouping {
        key_field: key_field.map(str::to_owned),
        batch_size,
    };
    Batches::new(Cursor::new(input), grouping).collect()
}

/// Batches as `key=payload`.
fn batches(input: &str, key_field: Option<&str>, batch_size: usize) -> Vec<String> {
    let batches = read(input.as_bytes(), key_field, batch_size).unwrap();
    batches
        .iter()
        .map(|batch| format!("{}={}", batch.key, batch.payload))
        .collect()
}

fn problem(input: &[u8]) -> String {
    read(input, None, 10).unwrap_err().to_string()
}

#[test]
fn a_payload_is_always_an_array() {
    assert_eq!(
        batches("1\n2\n3\n", None, 1),
        ["default=[1]", "default=[2]", "default=[3]"]
    );
    assert_eq!(
        batches("1\n2\n3", None, 2),
        ["default=[1,2]", "default=[3]"]
    );
    assert_eq!(
        batches("{\"a\": 1}\n[]\nnull\n\"x\"", None, 9),
        ["default=[{\"a\": 1},[],null,\"x\"]"]
    );
}

#[test]
fn items_are_grouped_by_key_in_order_of_appearance() {
    let input = r#"
        {"t":"b","n":1}
        {"t":"a","n":2}
        {"t":"b","n":3}
        {"t":"b","n":4}
        {"t":7,"n":5}
    "#;
    let expected = [
        r#"b=[{"t":"b","n":1},{"t":"b","n":3}]"#,
        r#"a=[{"t":"a","n":2}]"#,
        r#"b=[{"t":"b","n":4}]"#,
        r#"7=[{"t":7,"n":5}]"#,
    ];
    assert_eq!(batches(input, Some("t"), 2), expected);
}

#[test]
fn a_key_must_be_text_or_a_whole_number() {
    let problem = |item: &str| read(item.as_bytes(), Some("t"), 1).unwrap_err().to_string();
    assert!(problem("{\"t\":1}\n{\"u\":1}").contains("line 2: has no field \"t\""));
    assert!(problem("[1]").contains("no field"));
    for item in [
        r#"{"t":null}"#,
        r#"{"t":1.5}"#,
        r#"{"t":{}}"#,
        r#"{"t":99999999999999999999}"#,
    ] {
        assert!(
            problem(item).contains("neither text nor a whole number"),
            "{item}"
        );
    }
    assert!(problem(r#"{"t":""}"#).contains("the key is empty"));
    assert!(problem(r#"{"t":"a\nb"}"#).contains("control character"));
    assert_eq!(batches(r#"{"t":-5}"#, Some("t"), 1), [r#"-5=[{"t":-5}]"#]);
    assert_eq!(
        batches(r#"{"t":18446744073709551615}"#, Some("t"), 1).len(),
        1
    );
}

#[test]
fn windows_files_and_blank_lines_are_fine() {
    assert_eq!(
        batches("\u{feff}1\r\n\r\n  \t\r\n 2 \r\n3", None, 9),
        ["default=[1,2,3]"]
    );
    // A mark anywhere else is no mark.
    assert!(problem("1\n\u{feff}2".as_bytes()).starts_with("line 2: is not one JSON value"));
}

#[test]
fn the_line_of_an_error_counts_blank_lines() {
    assert!(problem(b"1\n\n\nnope\n5").starts_with("line 4: is not one JSON value"));
}

#[test]
fn what_is_no_json_is_named() {
    let bad = [
        "{\"a\":1,}",
        "{'a':1}",
        "// x",
        "NaN",
        "Infinity",
        "1 2",
        "{\"a\":1}{\"b\":2}",
        "01",
        "\"\\x\"",
        "[1",
        "\"\\ud800\"",
        "1e999",
        "\u{1}",
        "\"a\tb\"",
        "tru",
    ];
    for text in bad {
        let problem = problem(text.as_bytes());
        assert!(
            problem.starts_with("line 1: is not one JSON value: "),
            "{text}: {problem}"
        );
        assert!(!problem.contains("at line"), "{problem}");
    }
}

#[test]
fn what_cannot_be_stored_is_named() {
    assert!(problem(b"\"a\\u0000\"").contains("NUL"));
    assert!(problem(b"{\"\\u0000\":1}").contains("NUL"));
    assert!(problem(b"\"\0\"").contains("not one JSON value"));
    assert!(problem(b"\"ab\xff\"").contains("not UTF-8, from byte 4"));
    assert!(problem(b"\"\xc0\xaf\"").contains("not UTF-8"));
}

#[test]
fn depth_is_bounded() {
    let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
    assert!(read(&nested(MAX_DEPTH - 1), None, 1).is_ok());
    for depth in [MAX_DEPTH, 127, 128, 129, 100_000] {
        assert!(problem(&nested(depth)).contains("nested deeper"), "{depth}");
    }
    // Never closed, as in a bomb.
    assert!(problem(&vec![b'['; 100_000]).contains("nested deeper"));
}

#[test]
fn an_item_over_the_payload_limit_is_refused_and_one_at_the_limit_is_not() {
    let text = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    let largest = text(MAX_PAYLOAD_BYTES - 2);
    let read_two = read(format!("{largest}\r\n{largest}").as_bytes(), None, 5).unwrap();
    assert!(
        read_two
            .iter()
            .all(|batch| batch.payload.len() == MAX_PAYLOAD_BYTES && batch.items == 1)
    );
    let too_large = problem(format!("1\n{}", text(MAX_PAYLOAD_BYTES - 1)).as_bytes());
    assert!(too_large.contains("line 2: makes a payload of 1048577 bytes, at most 1048576"));
}

#[test]
fn a_batch_closes_before_it_grows_over_the_payload_limit() {
    let item = format!("\"{}\"\n", "x".repeat(1_000));
    let read_all = read(item.repeat(3_000).as_bytes(), None, 100_000).unwrap();
    assert_eq!(
        read_all.iter().map(|batch| batch.items).sum::<usize>(),
        3_000
    );
    assert!(
        read_all
            .iter()
            .all(|batch| batch.payload.len() <= MAX_PAYLOAD_BYTES)
    );
    assert_eq!(read_all.len(), 3);
}

#[test]
fn an_endless_line_ends_in_an_error_not_in_all_the_memory() {
    let endless = BufReader::new(std::io::repeat(b'x'));
    let grouping = Grouping {
        key_field: None,
        batch_size: 1,
    };
    let error = Batches::new(endless, grouping).next().unwrap().unwrap_err();
    assert!(matches!(error, ItemsError::LongLine { line: 1 }));
}

#[test]
fn very_many_keys_wait_in_bounded_memory() {
    // Items of 100 kB, each with a key of its own: nothing fills up, so the oldest must go.
    let filler = "x".repeat(100_000);
    let lines = (0..1_000).map(|n| format!("{{\"t\":{n},\"x\":\"{filler}\"}}\n"));
    let input = lines.collect::<String>();
    let grouping = Grouping {
        key_field: Some("t".into()),
        batch_size: 10,
    };
    let mut input = Cursor::new(input.as_bytes());
    let first = Batches::new(input.by_ref(), grouping)
        .next()
        .unwrap()
        .unwrap();
    assert_eq!((first.key.as_str(), first.items), ("0", 1));
    assert!(usize::try_from(input.position()).unwrap() <= MAX_OPEN_BYTES + 2 * filler.len());
}

#[test]
fn nothing_is_an_error() {
    for nothing in ["", "\n \r\n", "\u{feff}"] {
        assert!(matches!(
            read(nothing.as_bytes(), None, 1),
            Err(ItemsError::Empty)
        ));
    }
}

#[test]
fn nothing_comes_after_an_error() {
    let grouping = Grouping {
        key_field: None,
        batch_size: 1,
    };
    let mut batches = Batches::new(Cursor::new(b"1\nnope\n2\n"), grouping);
    assert!(batches.next().unwrap().is_ok());
    let error = batches.next().unwrap().unwrap_err();
    assert!(matches!(
        error,
        ItemsError::Line {
            line: 2,
            problem: ItemProblem::Json(_)
        }
    ));
    assert!(batches.next().is_none());
}

#[test]
fn a_batch_is_one_line_of_the_submission() {
    let mut line = Vec::new();
    let batches = read(r#"{"t":"say \"hi\" ä","x":"y"}"#.as_bytes(), Some("t"), 1).unwrap();
    batches[0].write_line(&mut line);
    let expected = r#"{"key":"say \"hi\" ä","payload":[{"t":"say \"hi\" ä","x":"y"}]}"#;
    assert_eq!(String::from_utf8(line).unwrap(), format!("{expected}\n"));
}
