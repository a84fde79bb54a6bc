-- How far unfinished batches have come.
CREATE TABLE batch_cursors (
    batch    TEXT    NOT NULL PRIMARY KEY, -- UUID
    attempt  INTEGER NOT NULL,             -- which attempt saved it
    cursor   TEXT    NOT NULL,             -- JSON of the handler's own
    saved_at TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

-- Whoever writes the marker removes the cursor, in the same transaction.
CREATE TRIGGER batch_cursors_end AFTER INSERT ON batch_commits BEGIN
    DELETE FROM batch_cursors WHERE batch = NEW.batch;
END;
