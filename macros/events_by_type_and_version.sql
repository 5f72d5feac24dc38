{% macro events_by_type_and_version() %}
{#- The rows that events_by_type and its relatives add up; to be used beside periods(). -#}
    select
        count.event_type::String as event_type,
        count.app_version as app_version,
        count.event_count as event_count
    from {{ rollup_rows(ref('events_by_type_daily'), ref('events_by_type_hourly'), 'counts') }}
    array join counts as count

    union all

    select
        event_type::String as event_type,
        app_version,
        1 as event_count
    from {{ raw_events() }}
{% endmacro %}
