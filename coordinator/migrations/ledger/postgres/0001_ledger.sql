-- Runs and their batches. Times are milliseconds since 1970, states of batches are spelled out in
-- coordinator/src/ledger/row.rs. Ids are UUIDs of version 7: their order is that of submission.

-- Who may write: coordinators lease lanes, for a while and again. Each takeover has a larger epoch, and
-- whoever writes holds on to the rows that it found its own name and epoch in.
CREATE TABLE lanes (
    lane  bigint      PRIMARY KEY,
    owner text        NOT NULL,
    epoch bigint      NOT NULL,
    until timestamptz NOT NULL
);

CREATE TABLE runs (
    id               uuid   PRIMARY KEY,
    pipeline         text   NOT NULL,
    priority         text   NOT NULL,
    -- 'submitting' until the whole submission is in: nobody sees such a run, and a restart removes it.
    state            text   NOT NULL,
    idempotency_key  text   UNIQUE,
    -- Of the submitted lines: the same key with other lines is a conflict.
    digest           bytea,
    -- Whom to tell when the run has finished, and when to try (again): set while that is still to be done.
    webhook          text,
    webhook_failures bigint NOT NULL DEFAULT 0,
    webhook_due      bigint,
    created_at       bigint NOT NULL,
    finished_at      bigint,
    -- How many batches are in each state, kept in the transactions that change the batches.
    accepted         bigint NOT NULL DEFAULT 0,
    pending          bigint NOT NULL DEFAULT 0,
    out              bigint NOT NULL DEFAULT 0,
    completed        bigint NOT NULL DEFAULT 0,
    dead             bigint NOT NULL DEFAULT 0,
    cancelled        bigint NOT NULL DEFAULT 0,
    retries          bigint NOT NULL DEFAULT 0,
    rows             bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50); -- Room for the counters to change within their page.

CREATE INDEX runs_state ON runs (state, id);
CREATE INDEX runs_cancelling ON runs (id) WHERE state = 'cancelled' AND finished_at IS NULL;
CREATE INDEX runs_webhook ON runs (webhook_due) WHERE webhook_due IS NOT NULL;

CREATE TABLE run_statistics (
    run   uuid   NOT NULL,
    name  text   NOT NULL,
    value bigint NOT NULL,
    PRIMARY KEY (run, name)
) WITH (fillfactor = 50);

CREATE TABLE batches (
    id       uuid   PRIMARY KEY,
    run      uuid   NOT NULL,
    -- Compared byte by byte: the order does not matter, and this is the fastest.
    pipeline text   COLLATE "C" NOT NULL,
    key      text   COLLATE "C" NOT NULL,
    state    bigint NOT NULL,
    -- The last attempt that was dispatched, and how many of them failed or were released.
    attempt  bigint NOT NULL DEFAULT 0,
    failures bigint NOT NULL DEFAULT 0,
    releases bigint NOT NULL DEFAULT 0,
    -- Pending: not to be dispatched before. Otherwise: when the state was entered.
    due      bigint NOT NULL,
    bytes    bigint NOT NULL,
    reason   text,
    error    text,
    -- Of the attempt that completed it: who, for how long, and when it went out.
    worker   text,
    took_ms  bigint,
    out_at   bigint,
    -- How often its worker died, and who was told to run it alone.
    deaths   bigint NOT NULL DEFAULT 0,
    alone_on text
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

CREATE INDEX batches_run ON batches (run, id);
CREATE INDEX batches_pending ON batches (run, pipeline, key, due, id) WHERE state = 0;
CREATE INDEX batches_due ON batches (run, due) WHERE state = 0;
CREATE INDEX batches_out ON batches (due, id) WHERE state = 1;
CREATE INDEX batches_dead ON batches (run, id) WHERE state = 3;
CREATE INDEX batches_died ON batches (due, id) WHERE state = 3;

-- Payloads stand apart, so that a change of state rewrites a few hundred bytes and not the payload.
CREATE TABLE payloads (
    batch uuid PRIMARY KEY,
    body  text NOT NULL
);

-- Attempts that ended, but for the one that completed the batch in time: that stands in its row.
CREATE TABLE attempts (
    batch      uuid   NOT NULL,
    attempt    bigint NOT NULL,
    verdict    text   NOT NULL,
    error      text,
    worker     text,
    out_at     bigint,
    settled_at bigint NOT NULL,
    took_ms    bigint,
    PRIMARY KEY (batch, attempt, verdict)
);

-- How many batches of accepted runs are pending and out, kept in the transactions that change the batches.
CREATE TABLE pipelines (
    name    text    PRIMARY KEY,
    paused  boolean NOT NULL DEFAULT false,
    pending bigint  NOT NULL DEFAULT 0,
    out     bigint  NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

CREATE TABLE memory (
    kind  text NOT NULL,
    name  text NOT NULL,
    value text NOT NULL,
    PRIMARY KEY (kind, name)
);
