-- The one way in: files, HTTP and Kafka insert raw lines here. Nothing is stored; the views below route each line.
create table if not exists {database}.landing
(
    line String comment 'One event as JSON text, or whatever was sent in its place',
    raw String comment 'The line as it came, where that is not JSON; empty means: as in line',
    line_number UInt64 comment 'Line of the import at which it starts, from 1',
    import_id String comment 'Import that it belongs to',
    source String comment 'Door and name of what is imported: http, or the path of the file'
)
engine = Null
comment 'The way in: one raw line per row, routed to app_events or app_events_quarantine';

-- What landing_check says of each line: its columns as text, and the faults that keep it from being an event.
create table if not exists {database}.landing_checked
(
    event_id String,
    user_id String,
    event_type String,
    event_time String,
    event_time_utc Nullable(DateTime('UTC')),
    app_version String,
    device_type String,
    os_version String,
    country String,
    properties String,
    session_id String,
    faults Array(Tuple(column String, reason String)),
    line_number UInt64,
    import_id String,
    source String,
    raw String
)
engine = Null
comment 'Lines of landing after the check: passed on, never stored';
