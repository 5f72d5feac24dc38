create materialized view if not exists {database}.landing_kept to {database}.app_events
sql security definer
as
select
    event_id,
    user_id,
    event_type,
    assumeNotNull(event_time_utc) as event_time,
    app_version,
    device_type,
    os_version,
    country,
    properties,
    session_id,
    import_id,
    line_number
from {database}.landing_checked
where empty(faults);

create materialized view if not exists {database}.landing_quarantined to {database}.app_events_quarantine
sql security definer
as
select
    event_id,
    user_id,
    event_type,
    event_time,
    app_version,
    device_type,
    os_version,
    country,
    properties,
    session_id,
    faults.column as c__error_column,
    faults.reason as c__error,
    import_id as c__import_id,
    line_number,
    raw,
    source
from {database}.landing_checked
where notEmpty(faults);

create materialized view if not exists {database}.landing_counted to {database}.imports
sql security definer
as
select
    import_id,
    anyLast(source) as source,
    count() as lines,
    countIf(empty(faults)) as kept,
    countIf(notEmpty(faults)) as quarantined,
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
    sum(quarantined) as quarantined,
    (
        select
            arraySlice(
                arraySort(
                    groupArrayArray(
                        arrayMap(
                            (fault_column, fault) -> (line_number, fault_column, fault)::Tuple(line UInt64, column String, error String),
                            c__error_column,
                            c__error
                        )
                    )
                ),
                1,
                10
            )
        from {database}.app_events_quarantine
        where c__import_id = {import_id:String}
    ) as rejects
from {database}.imports
where import_id = {import_id:String};
