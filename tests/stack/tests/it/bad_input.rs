//! Input that is wrong is refused whole, with the line and what to do.

use harness::rabbitmq::shared as broker;
use harness::stack::{Answer, Stack};
use shared::exit;

const NOOP: &str = "[pipelines.noop]\nhandler = \"noop\"\nsink = false\n";

/// Submits this content through the CLI.
async fn submit(stack: &Stack<'_>, content: &[u8], more: &[&str]) -> Answer {
    std::fs::write(stack.scratch().path().join("list.ndjson"), content).unwrap();
    stack
        .tidegate(&[&["submit", "noop", "list.ndjson"], more].concat())
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_line_refuses_the_whole_file() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    stack.start_coordinator().await.unwrap();
    let too_long = format!("1\n\"{}\"\n", "x".repeat(1024 * 1024));
    let many_then_bad = format!("{}nonsense\n", "{\"n\":1}\n".repeat(5_000));
    let cases: [(&[u8], &str); 6] = [
        (b"{\"a\":1}\n{\"a\":\n{\"a\":3}\n", "line 2"),
        (b"1\n2\n\xff\xfe\n", "line 3"),
        (b"1\n\"a\\u0000b\"\n", "line 2"),
        (b"{\"a\":1} {\"a\":2}\n", "line 1"),
        (too_long.as_bytes(), "line 2"),
        (many_then_bad.as_bytes(), "line 5001"),
    ];
    for (content, line) in cases {
        let answer = submit(&stack, content, &[]).await;
        assert_eq!(answer.code, i32::from(exit::BAD_INPUT), "{answer:?}");
        assert!(answer.stderr.contains(line), "{answer:?}");
        assert!(answer.stdout.is_empty(), "{answer:?}");
    }
    assert!(
        stack.api.runs().await.unwrap().is_empty(),
        "nothing was submitted"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_refuses_by_itself_too() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    stack.start_coordinator().await.unwrap();
    let good = "{\"key\":\"k\",\"payload\":1}\n";
    let too_large = format!("{{\"payload\":\"{}\"}}\n", "x".repeat(1024 * 1024));
    let cases = [
        ("noop", format!("{good}{{\"key\":\"k\"}}\n"), "line 2"),
        ("noop", format!("{good}{good}not json\n"), "line 3"),
        (
            "noop",
            format!("{good}{{\"key\":\"k\",\"payload\":\"\\u0000\"}}\n"),
            "line 2",
        ),
        ("noop", format!("{good}{too_large}"), "line 2"),
        ("noop", String::new(), "no batch"),
        ("nop", good.to_owned(), "noop"),
    ];
    for (pipeline, body, word) in cases {
        let answer = stack.api.submit_raw(pipeline, body).await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_client_error(), "{status}: {text}");
        assert!(text.contains(word), "no {word:?}: {text}");
    }
    assert!(
        stack.api.runs().await.unwrap().is_empty(),
        "nothing was submitted"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_pipeline_is_named_with_the_known_ones() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    stack.start_coordinator().await.unwrap();
    std::fs::write(stack.scratch().path().join("list.ndjson"), "1\n").unwrap();
    let answer = stack
        .tidegate(&["submit", "nop", "list.ndjson"])
        .await
        .unwrap();
    assert_eq!(answer.code, i32::from(exit::BAD_INPUT), "{answer:?}");
    assert!(answer.stderr.contains("noop"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_arguments_name_the_flag() {
    let stack = Stack::new(broker(), NOOP).unwrap();
    let sync = |more: &[&'static str]| {
        [
            &[
                "sync",
                "search-console",
                "--property",
                "sc-domain:a.example",
            ],
            more,
        ]
        .concat()
    };
    let cases = [
        (
            sync(&["--from", "2026-02-30", "--to", "2026-03-01"]),
            "--from",
        ),
        (sync(&["--days", "0"]), "--days"),
        (sync(&["--types", "wob"]), "web"),
        (sync(&["--dimensions", "page,page"]), "twice"),
        (sync(&["--from", "2026-02-02"]), "--to"),
        (vec!["run", "show", "7"], "7"),
    ];
    for (arguments, word) in cases {
        let answer = stack.tidegate(&arguments).await.unwrap();
        assert_eq!(
            answer.code,
            i32::from(exit::USAGE),
            "{arguments:?}: {answer:?}"
        );
        assert!(
            answer.stderr.contains(word) && answer.stdout.is_empty(),
            "{arguments:?}: {answer:?}"
        );
    }
    let swapped = stack
        .tidegate(&sync(&["--from", "2026-02-02", "--to", "2026-02-01"]))
        .await
        .unwrap();
    assert_ne!(swapped.code, 0, "{swapped:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_away_is_said_so() {
    let stack = Stack::new(broker(), NOOP).unwrap();
    let answer = stack.tidegate(&["run", "list"]).await.unwrap();
    assert_eq!(answer.code, i32::from(exit::UNAVAILABLE), "{answer:?}");
    assert!(answer.stderr.contains(stack.api.url()), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_asked_for_where_one_is_set() {
    let mut stack = Stack::new(broker(), NOOP).unwrap();
    stack.set("TIDEGATE_API__TOKEN", "open-sesame");
    stack.start_coordinator().await.unwrap();
    let answer = stack
        .api
        .submit_raw("noop", "{\"payload\":1}\n")
        .await
        .unwrap();
    assert_eq!(answer.status().as_u16(), 401);
    let answer = stack.tidegate(&["run", "list"]).await.unwrap();
    assert_eq!(answer.code, i32::from(exit::CONFIG), "{answer:?}");
}
