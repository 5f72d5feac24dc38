-- What a valid event is, stated once, in is_valid: a JSON object with a non-empty event_id and event_type, text (or
-- numbers and booleans, kept as their text) in its columns, and an event_time that is a time from 1970-01-01 00:00:00 to
-- 2106-02-07 06:28:15 UTC. landing_quarantined puts into words what keeps a line from being one.
--
-- Every insert plans this anew, 25 to 50 us a function: for a request of one event that is most of its time.
create materialized view if not exists {database}.landing_check to {database}.landing_checked
sql security definer
as
with
    line_parsed as
    (
        select
            *,
            -- Parsed once for all columns: once per column costs 4 times as much.
            JSONExtract(
                line,
                'Tuple(event_id String, user_id String, event_type String, event_time String, app_version String, device_type String, os_version String, country String, properties String, session_id String)'
            ) as event,
            event.event_time as time_text,
            -- YYYY-MM-DD HH:MM:SS with or without T, fraction and zone; the parser refuses 30 February by itself.
            if(
                match(
                    time_text,
                    '^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[ Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]+)?([Zz]|[+-]([01][0-9]|2[0-3])(:?[0-5][0-9])?)?$'
                ),
                toUnixTimestamp64Second(parseDateTime64BestEffortOrNull(upper(time_text), 0, 'UTC')),
                toInt64OrNull(extract(time_text, '^([0-9]{1,13})(?:[.][0-9]+)?$'))
            ) as time_number,
            -- 4294967295 is the last second of DateTime: a larger number without separators is milliseconds.
            if(time_number > 4294967295 and not match(time_text, '-'), intDiv(time_number, 1000), time_number) as unix_seconds
        from {database}.landing
    )

select
    event,
    if(unix_seconds between 0 and 4294967295, toDateTime(assumeNotNull(unix_seconds), 'UTC'), null) as event_time_utc,
    -- An object or array in place of text; text may look like one.
    if(
        multiSearchAny(line, [':{', ':[', ': ', ':\t', ':\r', ':\n']),
        arrayFilter(
            (name, text) -> left(text, 1) in ('{', '[') and JSONType(line, name) in ('Object', 'Array'),
            ['event_id', 'user_id', 'event_type', 'event_time', 'app_version', 'device_type', 'os_version', 'country', 'session_id'],
            [event.1, event.2, event.3, event.4, event.5, event.6, event.7, event.8, event.10]
        ),
        []
    ) as nested_columns,
    startsWith(trimLeft(line), '{')
    and event.event_id != ''
    and event.event_type != ''
    and event_time_utc is not null
    and empty(nested_columns) as is_valid,
    line,
    raw,
    line_number,
    import_id,
    source
from line_parsed;
