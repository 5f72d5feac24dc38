-- The ledger of the landing folder: one row per file that was dealt with, so that each counts once.
create table if not exists {database}.landing_files
(
    content_id String comment 'Import that the file is: hash of its decompressed content, or the id in a spooled batch''s name',
    path String comment 'Where the file lies, relative to the landing folder; one that was set aside: where it was moved to',
    size UInt64 comment 'Bytes of the file as it lies there',
    modified String comment 'When the file was last changed, as its file system says it',
    state Enum8('done' = 1, 'set aside' = 2) comment 'done: every line of it went in; set aside: it cannot be read',
    lines UInt64 comment 'Lines that this file brought; 0 when another file had brought the same content',
    quarantined UInt64 comment 'Those of them that are no valid events',
    error String comment 'Why it was set aside, one sentence; empty for the others',
    started_at DateTime64(3, 'UTC') comment 'When its ingestion began, in UTC',
    finished_at DateTime64(3, 'UTC') comment 'When its ingestion ended, in UTC'
)
engine = ReplacingMergeTree(finished_at)
order by (path, size, modified)
comment 'Files of the landing folder that were ingested or set aside';
