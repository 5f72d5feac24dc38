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
