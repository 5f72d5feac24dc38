create materialized view if not exists {database}.landing_kept to {database}.app_events
sql security definer
as
select
    event.event_id as event_id,
    event.user_id as user_id,
    event.event_type as event_type,
    assumeNotNull(event_time_utc) as event_time,
    event.app_version as app_version,
    event.device_type as device_type,
    event.os_version as os_version,
    event.country as country,
    event.properties as properties,
    event.session_id as session_id,
    import_id,
    line_number
from {database}.landing_checked
where is_valid;

create materialized view if not exists {database}.landing_quarantined to {database}.app_events_quarantine
sql security definer
as
with
    faults_found as
    (
        select
            *,
            multiIf(
                not isValidJSON(line),
                [('', 'the line is not valid JSON')],
                not startsWith(trimLeft(line), '{'),
                [('', 'the line holds JSON that is not an object')],
                arrayConcat(
                    if(event.event_id = '', [('event_id', 'event_id is missing or empty')], []),
                    if(event.event_type = '', [('event_type', 'event_type is missing or empty')], []),
                    multiIf(
                        event_time_utc is not null,
                        [],
                        event.event_time = '',
                        [('event_time', 'event_time is missing or empty')],
                        [(
                            'event_time',
                            concat(
                                '\'', substringUTF8(event.event_time, 1, 100), '\' is not a time from 1970-01-01 to ',
                                '2106-02-07; send YYYY-MM-DD HH:MM:SS in UTC, ISO 8601, or Unix seconds or milliseconds'
                            )
                        )]
                    ),
                    arrayMap(name -> (name, concat(name, ' is a JSON object or array; send text')), nested_columns)
                )
            ) as faults
        from {database}.landing_checked
        where not is_valid
    )

select
    event.event_id as event_id,
    event.user_id as user_id,
    event.event_type as event_type,
    event.event_time as event_time,
    event.app_version as app_version,
    event.device_type as device_type,
    event.os_version as os_version,
    event.country as country,
    event.properties as properties,
    event.session_id as session_id,
    faults.1 as c__error_column,
    faults.2 as c__error,
    import_id as c__import_id,
    line_number,
    if(raw = '', line, raw) as raw,
    source
from faults_found;

create materialized view if not exists {database}.landing_counted to {database}.imports
sql security definer
as
select
    import_id,
    anyLast(source) as source,
    count() as lines,
    countIf(is_valid) as kept,
    countIf(not is_valid) as quarantined,
    now64(3, 'UTC') as started_at,
    now64(3, 'UTC') as finished_at
from {database}.landing_checked
group by import_id;

-- What one import brought, for the answer to its sender.
create or replace view {database}.import_results
sql security definer
as
select
    sum(lines) as lines,
    sum(kept) as kept,
    sum(quarantined) as quarantined
from {database}.imports
where import_id = {import_id:String};

-- Its first ten faults.
create or replace view {database}.import_rejects
sql security definer
as
select
    line_number,
    fault.1 as fault_column,
    fault.2 as error
from {database}.app_events_quarantine
array join arrayZip(c__error_column, c__error) as fault
where c__import_id = {import_id:String}
order by line_number, fault_column
limit 10;
