-- What a valid event is, stated once: a JSON object with a non-empty event_id and event_type, text (or numbers and
-- booleans, kept as their text) in its columns, and an event_time from 1970-01-01 00:00:00 to 2106-02-07 06:28:15 UTC.
create materialized view if not exists {database}.landing_check to {database}.landing_checked
sql security definer
as
with
    line_parsed as
    (
        select
            -- Parsed once for all columns, not once per column.
            JSONExtract(
                line,
                'Tuple(event_id String, user_id String, event_type String, event_time String, app_version String, '
                || 'device_type String, os_version String, country String, properties String, session_id String)'
            ) as event,
            startsWith(trimLeft(line), '{') as starts_as_object,
            -- A column whose text looks like JSON was sent as such text or as an object in place of text.
            arrayFilter(
                column -> column.2 != '' and left(column.2, 1) in ('{', '[') and JSONType(line, column.1) in ('Object', 'Array'),
                if(
                    multiSearchAny(line, [':{', ':[', ': ', ':\t', ':\r', ':\n']),
                    [
                        ('event_id', event.event_id), ('user_id', event.user_id), ('event_type', event.event_type),
                        ('event_time', event.event_time), ('app_version', event.app_version),
                        ('device_type', event.device_type), ('os_version', event.os_version),
                        ('country', event.country), ('session_id', event.session_id)
                    ],
                    []
                )
            ) as nested_columns,
            line,
            raw,
            line_number,
            import_id,
            source
        from {database}.landing
    ),

    event_time_split as
    (
        select
            *,
            event.event_time as time_text,
            substring(time_text, 11, 1) in (' ', 'T', 't') as has_clock,
            concat(substring(time_text, 1, 10), ' ', substring(time_text, 12, 8)) as clock,
            -- Wraps on its last day, after 06:28:15: hence the comparison with the text below.
            if(has_clock, parseDateTimeOrNull(clock, '%Y-%m-%d %H:%i:%s', 'UTC'), null) as clock_time,
            substring(time_text, 20) as zone_text,
            has_clock and zone_text != ''
            and match(zone_text, '^([.,][0-9]+)?([Zz]|[+-]([01][0-9]|2[0-3])(:?[0-5][0-9])?)?$') as has_zone,
            if(has_zone, extractGroups(zone_text, '([+-])([0-9]{2}):?([0-9]{2})?$'), []) as zone_offset,
            if(
                not has_clock and match(time_text, '^[0-9]{1,13}([.][0-9]+)?$'),
                toInt64OrNull(extract(time_text, '^[0-9]+')),
                null
            ) as unix_number
        from line_parsed
    ),

    event_time_parsed as
    (
        select
            *,
            multiIf(
                has_clock and zone_text = '',
                if(toString(clock_time) = clock, toInt64(toUnixTimestamp(clock_time)), null),
                has_zone,
                toUnixTimestamp64Second(parseDateTime64OrNull(concat(clock, '.0'), '%Y-%m-%d %H:%i:%s.%f', 'UTC'))
                - if(
                    empty(zone_offset),
                    0,
                    if(zone_offset[1] = '-', -60, 60)
                    * (60 * toInt64OrZero(zone_offset[2]) + toInt64OrZero(zone_offset[3]))
                ),
                -- 4294967295 is the last second of DateTime: larger numbers are milliseconds.
                unix_number > 4294967295,
                intDiv(unix_number, 1000),
                unix_number
            ) as unix_seconds,
            if(unix_seconds between 0 and 4294967295, toDateTime(assumeNotNull(unix_seconds), 'UTC'), null) as event_time_utc
        from event_time_split
    )

select
    event.event_id as event_id,
    event.user_id as user_id,
    event.event_type as event_type,
    event.event_time as event_time,
    event_time_utc,
    event.app_version as app_version,
    event.device_type as device_type,
    event.os_version as os_version,
    event.country as country,
    event.properties as properties,
    event.session_id as session_id,
    multiIf(
        starts_as_object and event_id != '' and event_type != '' and isNotNull(event_time_utc) and empty(nested_columns),
        [],
        not isValidJSON(line),
        [('', 'the line is not valid JSON')],
        not starts_as_object,
        [('', concat('the line holds a JSON ', lower(toString(JSONType(line))), ', not an object'))],
        arrayFilter(
            fault -> fault.2 != '',
            arrayConcat(
                [
                    ('event_id', if(event_id = '', 'event_id is missing or empty', '')),
                    ('event_type', if(event_type = '', 'event_type is missing or empty', '')),
                    (
                        'event_time',
                        multiIf(
                            isNotNull(event_time_utc),
                            '',
                            event_time = '',
                            'event_time is missing or empty',
                            concat(
                                '\'', substringUTF8(toValidUTF8(event_time), 1, 100), '\'',
                                ' is not a time from 1970-01-01 to 2106-02-07; send YYYY-MM-DD HH:MM:SS in UTC, ',
                                'ISO 8601, or Unix seconds or milliseconds'
                            )
                        )
                    )
                ],
                arrayMap(
                    column -> (column.1, concat(column.1, ' is a JSON object or array; send text')),
                    nested_columns
                )
            )
        )
    ) as faults,
    line_number,
    import_id,
    source,
    if(raw = '', line, raw) as raw
from event_time_parsed;
