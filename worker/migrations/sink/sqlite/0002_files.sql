-- Where the rows of a batch are whose sink is a folder: committed, and visible in the folder or about to be.
CREATE TABLE batch_files (
    batch TEXT NOT NULL PRIMARY KEY, -- UUID
    file  TEXT NOT NULL              -- below the sink's folder
) STRICT, WITHOUT ROWID;
