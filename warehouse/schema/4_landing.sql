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

-- What landing_check says of each line.
create table if not exists {database}.landing_checked
(
    event Tuple(
        event_id String,
        user_id String,
        event_type String,
        event_time String,
        app_version String,
        device_type String,
        os_version String,
        country String,
        properties String,
        session_id String
    ) comment 'The columns as text; empty where they are missing or the line holds no JSON',
    event_time_utc Nullable(DateTime('UTC')) comment 'Null where event_time is no time',
    nested_columns Array(String) comment 'Columns that hold an object or array in place of text',
    is_valid Bool comment 'True for an event, false for a line to quarantine',
    line String comment 'As in landing',
    raw String comment 'As in landing',
    line_number UInt64 comment 'As in landing',
    import_id String comment 'As in landing',
    source String comment 'As in landing'
)
engine = Null
comment 'Lines of landing after the check: passed on, never stored';
