-- What every import brought, added up as its chunks arrive: lines = kept + quarantined.
create table if not exists {database}.imports
(
    import_id String comment 'Identifier of the import, made from its content or its Idempotency-Key',
    source SimpleAggregateFunction(anyLast, String) comment 'Door and name of what was imported',
    lines SimpleAggregateFunction(sum, UInt64) comment 'Lines that arrived',
    kept SimpleAggregateFunction(sum, UInt64) comment 'Lines that became rows of app_events',
    quarantined SimpleAggregateFunction(sum, UInt64) comment 'Lines that became rows of app_events_quarantine',
    started_at SimpleAggregateFunction(min, DateTime64(3, 'UTC')) comment 'When its first lines arrived, in UTC',
    finished_at SimpleAggregateFunction(max, DateTime64(3, 'UTC')) comment 'When its last lines arrived, in UTC'
)
engine = AggregatingMergeTree
order by import_id
settings non_replicated_deduplication_window = 100000
comment 'One row per import after merging: read it with sum, min and max, or with FINAL';

-- What has become of lines since they arrived. The same change written again, after an interruption, counts once.
create table if not exists {database}.import_changes
(
    import_id String comment 'Import that the lines belong to',
    job_id String comment 'Job that changed them',
    change Enum8('kept erased' = 1, 'quarantined erased' = 2, 'replayed' = 3)
        comment 'Erased from app_events or its quarantine, or moved from quarantine to app_events',
    line_number UInt64 comment 'Line of the import, where lines are counted one by one; 0 otherwise',
    raw_hash UInt64 comment 'Hash of the line as it came, where lines are counted one by one; 0 otherwise',
    rows SimpleAggregateFunction(max, UInt64) comment 'How many rows'
)
engine = AggregatingMergeTree
order by (import_id, job_id, change, line_number, raw_hash)
comment 'Rows erased or replayed after their import, by import and job; read it with FINAL';
