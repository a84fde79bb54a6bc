-- Proof that a batch's results are in. The first marker of a batch wins.
CREATE TABLE batch_commits (
    batch        uuid        NOT NULL PRIMARY KEY,
    attempt      bigint      NOT NULL, -- which attempt's results these are
    writer       text        NOT NULL, -- which worker wrote them
    digest       bytea       NOT NULL, -- 128-bit hash of the rows; empty without rows
    outcome      text        NOT NULL, -- JSON: what was reported, and is reported again
    committed_at timestamptz NOT NULL
);

-- Rows of pipelines without tables of their own. json, not jsonb: a row comes out as it went in.
CREATE TABLE results (
    batch   uuid    NOT NULL,
    "index" integer NOT NULL, -- position in what the batch produced, from 0
    json    json    NOT NULL,
    PRIMARY KEY (batch, "index")
);

-- One row a slice: what is known of one site, search type, dimension set and Pacific day.
-- The rows themselves are in search_analytics_rows_<dimensions>, seen through search_analytics_<dimensions>.
CREATE TABLE search_analytics_slices (
    slice         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    site_url      text    NOT NULL,
    search_type   text    NOT NULL,
    dimension_set text    NOT NULL, -- 'page,query'
    date          date    NOT NULL, -- Pacific
    state         text    NOT NULL, -- final, provisional, truncated, failed
    rows          bigint  NOT NULL DEFAULT 0,
    clicks        bigint  NOT NULL DEFAULT 0,
    impressions   bigint  NOT NULL DEFAULT 0,
    truncated     boolean NOT NULL DEFAULT false, -- Google's cap of 50,000 rows was reached
    is_final      boolean NOT NULL DEFAULT false, -- only late revisions can change it
    version       integer NOT NULL DEFAULT 0,     -- how often its rows were written
    content_hash  bytea,
    aggregation   text,             -- byPage or byProperty
    api_calls     bigint  NOT NULL DEFAULT 0,
    error         text,
    fetched_at    timestamptz,      -- when the rows were fetched that are stored
    verified_at   timestamptz,      -- when Google last gave the same rows
    UNIQUE (site_url, search_type, dimension_set, date)
);

CREATE TABLE search_analytics_properties (
    site_url   text        NOT NULL PRIMARY KEY,
    state      text        NOT NULL, -- active, quota_limited, permission_lost, reauth_required
    detail     text,
    until      timestamptz,
    checked_at timestamptz NOT NULL
);
