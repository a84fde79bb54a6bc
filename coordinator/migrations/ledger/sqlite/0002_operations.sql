-- What operators do, what is lost and found again, and what is remembered.

-- Whom to tell when the run has finished, and when to try (again): set while that is still to be done.
ALTER TABLE runs ADD COLUMN webhook TEXT;
ALTER TABLE runs ADD COLUMN webhook_failures INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN webhook_due INTEGER;

CREATE INDEX runs_state ON runs (state, id);
CREATE INDEX runs_cancelling ON runs (id) WHERE state = 'cancelled' AND finished_at IS NULL;
CREATE INDEX runs_webhook ON runs (webhook_due) WHERE webhook_due IS NOT NULL;

-- Of the attempt that completed it: who, for how long, and when it went out.
ALTER TABLE batches ADD COLUMN worker TEXT;
ALTER TABLE batches ADD COLUMN took_ms INTEGER;
ALTER TABLE batches ADD COLUMN out_at INTEGER;
-- How often its worker died, and who was told to run it alone.
ALTER TABLE batches ADD COLUMN deaths INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN alone_on TEXT;

CREATE INDEX batches_run ON batches (run, seq);
CREATE INDEX batches_due ON batches (run, due) WHERE state = 0;
CREATE INDEX batches_died ON batches (due, seq) WHERE state = 3;

-- Attempts that ended, but for the one that completed the batch in time: that stands in its row.
CREATE TABLE attempts (
    batch      INTEGER NOT NULL,
    attempt    INTEGER NOT NULL,
    verdict    TEXT    NOT NULL,
    error      TEXT,
    worker     TEXT,
    out_at     INTEGER,
    settled_at INTEGER NOT NULL,
    took_ms    INTEGER,
    PRIMARY KEY (batch, attempt, verdict)
) STRICT, WITHOUT ROWID;

-- How many batches of accepted runs are pending and out, kept in the transactions that change the batches.
CREATE TABLE pipelines (
    name    TEXT    NOT NULL PRIMARY KEY,
    paused  INTEGER NOT NULL DEFAULT 0,
    pending INTEGER NOT NULL DEFAULT 0,
    out     INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

INSERT INTO pipelines (name, pending, out)
SELECT b.pipeline, sum(b.state = 0), sum(b.state = 1)
FROM batches b JOIN runs r ON r.id = b.run
WHERE r.state <> 'submitting' AND b.state IN (0, 1)
GROUP BY b.pipeline;

CREATE TABLE memory (
    kind  TEXT NOT NULL,
    name  TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;
