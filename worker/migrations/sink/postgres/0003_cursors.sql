-- How far unfinished batches have come.
CREATE TABLE batch_cursors (
    batch    uuid        NOT NULL PRIMARY KEY,
    attempt  bigint      NOT NULL, -- which attempt saved it
    cursor   text        NOT NULL, -- JSON of the handler's own
    saved_at timestamptz NOT NULL
);

-- Whoever writes markers removes the cursors, in the same transaction and once a statement.
CREATE FUNCTION batch_cursors_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM batch_cursors WHERE batch IN (SELECT batch FROM committed);
    RETURN NULL;
END
$$;
CREATE TRIGGER batch_cursors_end AFTER INSERT ON batch_commits
    REFERENCING NEW TABLE AS committed FOR EACH STATEMENT EXECUTE FUNCTION batch_cursors_end();
