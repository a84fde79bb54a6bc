-- Proof that a batch's results are in. The first marker of a batch wins.
CREATE TABLE batch_commits (
    batch        TEXT    NOT NULL PRIMARY KEY, -- UUID
    attempt      INTEGER NOT NULL,             -- which attempt's results these are
    writer       TEXT    NOT NULL,             -- which worker wrote them
    digest       BLOB    NOT NULL,             -- 128-bit hash of the rows; empty without rows
    outcome      TEXT    NOT NULL,             -- JSON: what was reported, and is reported again
    committed_at TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

-- Rows of pipelines without tables of their own.
CREATE TABLE results (
    batch   TEXT    NOT NULL,
    "index" INTEGER NOT NULL, -- position in what the batch produced, from 0
    json    TEXT    NOT NULL,
    PRIMARY KEY (batch, "index")
) STRICT, WITHOUT ROWID;

-- One row a slice: what is known of one site, search type, dimension set and Pacific day.
-- The rows themselves are in search_analytics_rows_<dimensions>, seen through search_analytics_<dimensions>.
CREATE TABLE search_analytics_slices (
    slice         INTEGER PRIMARY KEY,
    site_url      TEXT    NOT NULL,
    search_type   TEXT    NOT NULL,
    dimension_set TEXT    NOT NULL, -- 'page,query'
    date          TEXT    NOT NULL, -- '2026-02-10'
    state         TEXT    NOT NULL, -- final, provisional, truncated, failed
    rows          INTEGER NOT NULL DEFAULT 0,
    clicks        INTEGER NOT NULL DEFAULT 0,
    impressions   INTEGER NOT NULL DEFAULT 0,
    truncated     INTEGER NOT NULL DEFAULT 0, -- 1: Google's cap of 50,000 rows was reached
    is_final      INTEGER NOT NULL DEFAULT 0, -- 1: only late revisions can change it
    version       INTEGER NOT NULL DEFAULT 0, -- how often its rows were written
    content_hash  BLOB,
    aggregation   TEXT,             -- byPage or byProperty
    api_calls     INTEGER NOT NULL DEFAULT 0,
    error         TEXT,
    fetched_at    TEXT,             -- when the rows were fetched that are stored
    verified_at   TEXT,             -- when Google last gave the same rows
    UNIQUE (site_url, search_type, dimension_set, date)
) STRICT;

CREATE TABLE search_analytics_properties (
    site_url   TEXT NOT NULL PRIMARY KEY,
    state      TEXT NOT NULL, -- active, quota_limited, permission_lost, reauth_required
    detail     TEXT,
    until      TEXT,
    checked_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;
