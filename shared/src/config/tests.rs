use super::*;

pub(super) fn read(toml: &str) -> Result<Config, ConfigError> {
    Config::from_figment(&Figment::new().merge(Toml::string(toml)))
}

pub(super) fn problem(toml: &str) -> String {
    read(toml).unwrap_err().to_string()
}

#[test]
fn the_defaults_are_a_working_installation() {
    let config = read("").unwrap();
    let names: Vec<&str> = config.pipelines.keys().map(PipelineName::as_str).collect();
    assert_eq!(names, ["gsc.plan", "gsc.slice"]);
    assert_eq!(
        config.ledger_url().address(),
        "sqlite://.tidegate/ledger.db"
    );
}

#[test]
fn unknown_keys_are_named_with_a_suggestion() {
    let slots = problem("[worker]\nslotz = 3");
    assert!(
        slots.contains("\"worker.slotz\" in") && slots.contains("did you mean \"slots\""),
        "{slots}"
    );
    let worker = problem("[wroker]\nslots = 3");
    assert!(
        worker.contains("key \"wroker\" in") && worker.contains("did you mean \"worker\""),
        "{worker}"
    );
}

#[test]
fn wrong_values_say_what_would_be_right() {
    let exec = |more: &str| format!("[pipelines.x]\ncommand = [\"true\"]\n{more}");
    let http = |url: &str, more: &str| {
        format!("[pipelines.x]\nhandler = \"http\"\nurl = \"{url}\"\n{more}")
    };
    let cases = [
        ("lanes = 0", "lanes"),
        ("[broker]\nurl = \"http://x\"", "amqp://"),
        (
            "[broker]\nurl = \"amqp://u:p@ss/w@host\"",
            "percent-encoded",
        ),
        ("[api]\nlisten = \"0.0.0.0:80\"", "api.token"),
        ("[worker]\nslots = 0", "1 to 4096"),
        ("[worker]\nslots = \"ten\"", "worker.slots"),
        ("[worker]\ndrain_timeout = \"10\"", "unit"),
        ("[worker]\npipelines = [\"nope\"]", "not configured"),
        ("[ledger]\nurl = \"mysql://x\"", "sqlite://"),
        ("[pipelines.hashes]\nhandler = \"exec\"", "command"),
        (
            &exec("url = \"https://a.example\""),
            "pipelines.x.url: belongs",
        ),
        (&exec("processes = 2"), "mode = \"lines\""),
        (&exec("mode = \"lines\"\nprocesses = 0"), "1 to 1024"),
        (&exec("batches_per_process = 9"), "mode = \"lines\""),
        (&exec("cpu_limit = \"1ms\""), "at least 1s"),
        (&exec("memory_limit = \"1MB\""), "512MiB"),
        (
            "[pipelines.x]\nhandler = \"http\"",
            "pipelines.x.url: is missing",
        ),
        (&http("ftp://a.example", ""), "https://"),
        (&http("https://me:hunter2@a.example", ""), "token"),
        (&http("http://169.254.169.254/", ""), "allow_private = true"),
        (
            &http("https://a.example", "secret = \"hunter2\""),
            "16 bytes",
        ),
        (&http("https://a.example", "token = \"a b\""), "visible"),
        (&http("https://a.example", "secret_id = \"\""), "visible"),
        (
            &http("https://a.example", "command = [\"true\"]"),
            "pipelines.x.command: belongs",
        ),
        (
            "[pipelines.x]\nhandler = \"noop\"\nwindow_min = 5\nwindow_max = 4",
            "window_min <= window_max",
        ),
        (
            "[pipelines.x]\nhandler = \"noop\"\ndeadline = \"26m\"",
            "1560s + 300s > 1800s",
        ),
        ("[reconcile]\nafter = \"20s\"", "3 x 10s = 30s"),
        (
            "[levels]\ninbox_warn = 9\ninbox_critical = 8",
            "inbox_warn <= inbox_critical",
        ),
        ("[levels]\nage_warn = \"7h\"", "age_critical"),
        (
            "[pipelines.x]\nhandler = \"noop\"\nweights = { a = 0.01 }",
            "0.1 to 100",
        ),
        (
            "[pipelines.x]\nhandler = \"noop\"\ndownstream_limit = 0",
            "1 to 1000000",
        ),
        (
            "[pipelines.x]\nhandler = \"noop\"\nfeeds = [\"y\"]",
            "not configured",
        ),
        (
            "[pipelines.x]\nhandler = \"noop\"\nfeeds = [\"y\"]\n[pipelines.y]\nhandler = \"noop\"\nfeeds = [\"x\"]",
            "leads back",
        ),
        (
            "[pipelines.\"gsc.slice\"]\nfeeds = [\"gsc.plan\"]",
            "leads back",
        ),
        ("[search_console]\ntypes = [\"wob\"]", "web"),
        ("[limits.x]\nrate = \"20\"", "1200/min"),
        ("[limits.x]\nrate = \"0/s\"", "1/day"),
        ("[limits.x]\nburst = 0", "limits.x.burst"),
        ("[limits.x]\nmax_keys = 0", "limits.x.max_keys"),
        ("[limits.x]\nstart = \"1/s\"", "needs a rate"),
        ("[limits.x]\nscope = \"all\"", "global"),
        ("[limits.X]\nburst = 1", "start with a letter"),
        (
            "[pipelines.x]\nhandler = \"noop\"\nlimits = [\"nope\"]",
            "not configured",
        ),
    ];
    for (toml, expected) in cases {
        let problem = problem(toml);
        assert!(problem.contains(expected), "{toml}: {problem}");
        assert!(!problem.contains("hunter2"), "{problem}");
    }
}

#[test]
fn a_worker_that_could_not_work_is_refused() {
    let cases = [
        ("[broker]\nheartbeat = \"1500ms\"", "whole seconds"),
        ("[broker]\nheartbeat = \"2m\"", "broker.heartbeat"),
        (
            "[broker]\nheartbeat = \"20s\"",
            "3 x 20s = 60s, after = 35s",
        ),
        ("[worker]\nthreads = 0", "1 to 512"),
        ("[worker]\nmax_abandoned = 65", "worker.max_abandoned"),
        ("[worker]\nlisten = \"localhost\"", "worker.listen"),
        (
            "[worker]\nlook_ahead = 3\nlook_ahead_min = 4",
            "look_ahead_min <= look_ahead: 4 > 3",
        ),
    ];
    for (toml, expected) in cases {
        let problem = problem(toml);
        assert!(problem.contains(expected), "{toml}: {problem}");
    }
}

#[test]
fn a_changed_section_is_named() {
    let (one, other) = (read("").unwrap(), read("[worker]\nslots = 3").unwrap());
    assert_eq!(one.changed_sections(&other), ["worker"]);
    assert!(one.changed_sections(&one).is_empty());
}

#[test]
fn a_built_in_limit_keeps_what_is_not_named() {
    let site = LimitName::new("gsc.site").unwrap();
    let config = read("[limits.\"gsc.site\"]\nrate = \"60/min\"").unwrap();
    let limit = &config.limits[&site];
    assert_eq!(limit.rate.unwrap().to_string(), "60/min");
    assert_eq!(limit.start.unwrap().to_string(), "5/s");
    for pipeline in config.pipelines.values() {
        assert!(pipeline.limits.contains(&site));
    }
}

#[test]
fn secrets_do_not_print() {
    let config =
        read("[broker]\nurl = \"amqp://user:hunter2@host/v\"\n[api]\ntoken = \"hunter2\"").unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    let signed = "[pipelines.x]\nhandler = \"http\"\nurl = \"https://a.example\"\n\
        secret = \"hunter2-hunter2-\"\ntoken = \"hunter2\"";
    assert!(!format!("{:?}", read(signed).unwrap()).contains("hunter2"));
    assert_eq!(config.broker.address(), "amqp://host:5672/v");
}

#[test]
fn the_heartbeat_is_ours_and_the_frame_size_unless_one_is_named() {
    use secrecy::ExposeSecret;
    for (query, expected) in [
        ("heartbeat=0&frame_max=8192", "frame_max=8192&heartbeat=10"),
        (
            "channel_max=9",
            "channel_max=9&heartbeat=10&frame_max=16384",
        ),
    ] {
        let config = read(&format!("[broker]\nurl = \"amqp://u:p@h:1/v?{query}\"")).unwrap();
        let url = config.broker.client_url().unwrap();
        assert_eq!(url.expose_secret(), format!("amqp://u:p@h:1/v?{expected}"));
    }
}

// The closure's error type is figment's.
#[allow(clippy::result_large_err)]
#[test]
fn the_environment_wins_over_the_file() {
    figment::Jail::expect_with(|jail| {
        Config::load(None).expect("no file is no mistake");
        jail.create_file(
            "tidegate.toml",
            "[worker]\nslots = 3\n[pipelines.a]\nhandler = \"noop\"",
        )?;
        jail.set_env("TIDEGATE_WORKER__SLOTS", "5");
        jail.set_env("TIDEGATE_WORKER__PIPELINES", "a, gsc.slice");
        jail.set_env("TIDEGATE_URL", "http://for-the-cli");
        jail.set_env("TIDEGATE_LIMITS", r#"{"gsc.site"={rate="7/s"}}"#);
        let config = Config::load(None).expect("a good config");
        assert_eq!(config.worker.slots, 5);
        assert_eq!(config.served_pipelines().len(), 2);
        let site = &config.limits[&LimitName::new("gsc.site").unwrap()];
        assert_eq!(site.rate.unwrap().to_string(), "7/s");
        Ok(())
    });
}

#[test]
fn a_pipeline_without_a_handler_is_served_by_a_program_of_its_own() {
    let handler = |section: &str| {
        let config = read(&format!("[pipelines.x]\n{section}")).unwrap();
        config.pipelines[&PipelineName::new("x").unwrap()].handler()
    };
    assert_eq!(handler("deadline = \"1s\""), HandlerKind::Library);
    assert_eq!(handler("handler = \"library\""), HandlerKind::Library);
    assert_eq!(handler("command = [\"true\"]"), HandlerKind::Exec);
}

#[test]
fn dispatch_is_told_about_shares_and_stages() {
    let config = read(
        "[pipelines.x]\nhandler = \"noop\"\nfeeds = [\"gsc.plan\"]\n\
         [pipelines.x.weights]\n\"sc-domain:example.com\" = 5\nother = 0.5",
    )
    .unwrap();
    let pipeline = |name: &str| &config.pipelines[&PipelineName::new(name).unwrap()];
    let weights: Vec<u32> = pipeline("x").weights.values().map(|w| w.tenths()).collect();
    assert_eq!(weights, [5, 50]);
    let fed: Vec<_> = pipeline("gsc.plan")
        .feeds
        .iter()
        .map(PipelineName::as_str)
        .collect();
    assert_eq!(fed, ["gsc.slice"]);
}
