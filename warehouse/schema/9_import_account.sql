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

-- The same beside what the tables hold, which is found by reading every event; also of rows whose import is not known.
-- A request that was never answered, because the server was killed while it wrote, can have reached one table and not the
-- other: such lines are missing here, or too many. Sent again, which its sender does, they are whole.
create or replace view {database}.import_account
sql security definer
as
with
    books_and_tables as
    (
        select import_id, source, lines, 0 as kept, 0 as quarantined, erased, 0 as events, started_at, finished_at
        from {database}.import_totals

        union all

        select import_id, '', 0, count(), 0, 0, 0, null, null
        from {database}.app_events
        group by import_id

        union all

        select c__import_id, '', 0, 0, count(), 0, 0, null, null
        from {database}.app_events_quarantine
        group by c__import_id

        union all

        -- As distinct_events() of the models: of the copies of an event the first one counts.
        select import_id, '', 0, 0, 0, 0, count(), null, null
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
    max(books_and_tables.source) as source,
    sum(books_and_tables.lines) as lines,
    sum(books_and_tables.kept) as kept,
    sum(books_and_tables.quarantined) as quarantined,
    sum(books_and_tables.erased) as erased,
    lines::Int64 - (kept + quarantined + erased)::Int64 as missing,
    kept - sum(books_and_tables.events) as duplicates,
    min(books_and_tables.started_at) as started_at,
    max(books_and_tables.finished_at) as finished_at
from books_and_tables
group by import_id
