-- The tables of events as the API describes them: one row per data source.
create or replace view {database}.datasource_list
sql security definer
as
with
    columns_by_table as
    (
        select
            table,
            groupArray((name, type, comment)::Tuple(name String, type String, description String)) as columns
        from
        (
            select table, name, type, comment
            from system.columns
            where database = '{database}' and table in ('app_events', 'app_events_quarantine') and default_kind != 'ALIAS'
            order by table, position
        )
        group by table
    ),

    rows_by_table as
    (
        -- Counted, not looked up: parts also hold rows that a lightweight delete has hidden.
        select 'app_events' as table, count() as row_count from {database}.app_events
        union all
        select 'app_events_quarantine', count() from {database}.app_events_quarantine
    )

select
    tables.name as name,
    tables.comment as description,
    tables.engine as engine,
    tables.partition_key as partition_key,
    tables.sorting_key as sorting_key,
    columns_by_table.columns as columns,
    rows_by_table.row_count as row_count,
    ifNull(tables.total_bytes, 0) as bytes
from system.tables as tables
inner join columns_by_table on columns_by_table.table = tables.name
inner join rows_by_table on rows_by_table.table = tables.name
where tables.database = '{database}'
order by name asc;
