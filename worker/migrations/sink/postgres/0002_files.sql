-- Where the rows of a batch are whose sink is a folder: committed, and visible in the folder or about to be.
CREATE TABLE batch_files (
    batch uuid NOT NULL PRIMARY KEY,
    file  text NOT NULL -- below the sink's folder
);
