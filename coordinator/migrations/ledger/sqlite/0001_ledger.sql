-- Runs and their batches. Ids are the 16 bytes of a UUID, times are milliseconds since 1970,
-- states are spelled out in coordinator/src/ledger/sqlite/row.rs.

CREATE TABLE runs (
    id              BLOB    NOT NULL PRIMARY KEY,
    pipeline        TEXT    NOT NULL,
    priority        TEXT    NOT NULL,
    -- 'submitting' until the whole submission is in: nobody sees such a run, and a restart removes it.
    state           TEXT    NOT NULL,
    idempotency_key TEXT    UNIQUE,
    -- Of the submitted lines: the same key with other lines is a conflict.
    digest          BLOB,
    created_at      INTEGER NOT NULL,
    finished_at     INTEGER,
    -- How many batches are in each state, kept in the transactions that change the batches.
    accepted        INTEGER NOT NULL DEFAULT 0,
    pending         INTEGER NOT NULL DEFAULT 0,
    out             INTEGER NOT NULL DEFAULT 0,
    completed       INTEGER NOT NULL DEFAULT 0,
    dead            INTEGER NOT NULL DEFAULT 0,
    cancelled       INTEGER NOT NULL DEFAULT 0,
    retries         INTEGER NOT NULL DEFAULT 0,
    rows            INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE run_statistics (
    run   BLOB    NOT NULL,
    name  TEXT    NOT NULL,
    value INTEGER NOT NULL,
    PRIMARY KEY (run, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE batches (
    seq        INTEGER PRIMARY KEY,
    id         BLOB    NOT NULL UNIQUE,
    run        BLOB    NOT NULL,
    pipeline   TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    state      INTEGER NOT NULL,
    -- The last attempt that was dispatched, and how many of them failed or were released.
    attempt    INTEGER NOT NULL DEFAULT 0,
    failures   INTEGER NOT NULL DEFAULT 0,
    releases   INTEGER NOT NULL DEFAULT 0,
    -- Pending: not to be dispatched before. Otherwise: when the state was entered.
    due        INTEGER NOT NULL,
    bytes      INTEGER NOT NULL,
    reason     TEXT,
    error      TEXT
) STRICT;

-- Payloads stand apart, so that a change of state rewrites a hundred bytes and not the payload.
CREATE TABLE payloads (
    seq  INTEGER PRIMARY KEY,
    body TEXT NOT NULL
) STRICT;

CREATE INDEX batches_pending ON batches (run, pipeline, key, due, seq) WHERE state = 0;
CREATE INDEX batches_out ON batches (seq) WHERE state = 1;
CREATE INDEX batches_dead ON batches (run, seq) WHERE state = 3;
