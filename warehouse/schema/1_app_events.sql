-- The tutorial's data source: one row per event received, copies included.
-- Endpoints and rollups count distinct (event_id, event_time); see models/staging.
create table if not exists {database}.app_events
(
    event_id String comment 'Identifier given by the sender; with event_time it identifies the event',
    user_id String comment 'User who caused the event',
    event_type LowCardinality(String) comment 'What happened, for example app_open',
    event_time DateTime('UTC') comment 'When it happened, in UTC, to the second',
    app_version LowCardinality(String) comment 'Version of the app',
    device_type LowCardinality(String) comment 'Kind of device',
    os_version LowCardinality(String) comment 'Version of the operating system',
    country LowCardinality(String) comment 'ISO 3166 alpha-2 code of the country',
    properties String comment 'JSON text with further properties of the event',
    session_id String comment 'Session in which it happened',
    import_id String comment 'Import that brought the row; see imports' codec(ZSTD(1)),
    line_number UInt64 comment 'Line of the import that held the event, from 1' codec(Delta, ZSTD(1)),
    inserted_at DateTime64(3, 'UTC') default now64(3, 'UTC') comment 'When the row was inserted, in UTC' codec(Delta, ZSTD(1)),
    content_hash UInt64 alias cityHash64(
        event_id, user_id, event_type, event_time, app_version, device_type, os_version, country, properties, session_id,
        import_id, line_number, inserted_at
    ) comment 'Hash of the row; computed when asked for, never stored',
    projection content_by_hour
    (
        select
            toStartOfHour(event_time),
            count(),
            sum(content_hash)
        group by toStartOfHour(event_time)
    )
)
engine = MergeTree
partition by toYYYYMM(event_time)
order by (event_time, event_type, user_id)
settings
    non_replicated_deduplication_window = 100000,
    -- With a part that was emptied by a delete, ClickHouse forgets its inserts: sent again, they would be back.
    remove_empty_parts = 0,
    lightweight_mutation_projection_mode = 'rebuild',
    deduplicate_merge_projection_mode = 'rebuild'
comment 'Events received from apps: the columns of the tutorial, then where each row came from';
