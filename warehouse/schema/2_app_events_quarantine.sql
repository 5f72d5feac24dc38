-- Every line that is not a valid event, with where it came from and what is wrong with it.
create table if not exists {database}.app_events_quarantine
(
    event_id String comment 'As sent, or empty',
    user_id String comment 'As sent, or empty',
    event_type String comment 'As sent, or empty',
    event_time String comment 'As sent, or empty',
    app_version String comment 'As sent, or empty',
    device_type String comment 'As sent, or empty',
    os_version String comment 'As sent, or empty',
    country String comment 'As sent, or empty',
    properties String comment 'As sent, or empty',
    session_id String comment 'As sent, or empty',
    c__error_column Array(String) comment 'Columns at fault; empty when the line as a whole is',
    c__error Array(String) comment 'What is wrong, one sentence for each column at fault',
    c__import_id String comment 'Import that brought the line; see imports',
    insertion_date DateTime('UTC') default now('UTC') comment 'When the line was quarantined, in UTC',
    line_number UInt64 comment 'Line of the import at which the row starts, from 1',
    raw String comment 'The line as it came',
    source LowCardinality(String) comment 'Door and name of what was imported: http, or the path of the file'
)
engine = MergeTree
order by (c__import_id, line_number)
settings
    non_replicated_deduplication_window = 100000,
    -- As in app_events.
    remove_empty_parts = 0
comment 'Lines that are not valid events, with the reason; sent = kept + quarantined';
