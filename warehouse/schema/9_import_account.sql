-- Where every line of every import is now: lines = kept + quarantined + erased.
create or replace view {database}.import_totals
sql security definer
as
with
    arrived as
    (
        select
            import_id,
            any(imports.source) as source,
            sum(imports.lines) as lines,
            sum(imports.kept) as kept,
            sum(imports.quarantined) as quarantined,
            min(imports.started_at) as started_at,
            max(imports.finished_at) as finished_at
        from {database}.imports as imports
        group by import_id
    ),

    changed as
    (
        select
            import_id,
            sumIf(rows, change = 'kept erased') as kept_erased,
            sumIf(rows, change = 'quarantined erased') as quarantined_erased,
            sumIf(rows, change = 'replayed') as replayed
        from {database}.import_changes final
        group by import_id
    )

select
    import_id,
    source,
    lines,
    arrived.kept + replayed - kept_erased as kept,
    arrived.quarantined - replayed - quarantined_erased as quarantined,
    kept_erased + quarantined_erased as erased,
    replayed,
    started_at,
    finished_at
from arrived
left join changed using (import_id);

-- The same with the copies: events of an import that had arrived before. They are found by reading every event.
create or replace view {database}.import_account
sql security definer
as
with
    events_counted as
    (
        -- As distinct_events() of the models: of the copies of an event the first one counts.
        select
            import_id,
            count() as events
        from
        (
            select import_id
            from {database}.app_events
            order by event_time, event_id, inserted_at, import_id, line_number
            limit 1 by event_time, event_id
        )
        group by import_id
    )

select
    import_id,
    source,
    lines,
    kept,
    quarantined,
    erased,
    kept - events as duplicates,
    started_at,
    finished_at
from {database}.import_totals
left join events_counted using (import_id)
