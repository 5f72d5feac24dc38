{% macro events_by_type_and_version() %}
{#- The rows that events_by_type and its relatives add up; to be used beside periods(). -#}
    select
        count.event_type::String as event_type,
        count.app_version as app_version,
        count.event_count as event_count
    from {{ ref('events_by_type_daily') }} final
    array join counts as count
    where day in fresh_days

    union all

    select
        count.event_type::String as event_type,
        count.app_version as app_version,
        count.event_count as event_count
    from {{ ref('events_by_type_hourly') }} final
    array join counts as count
    where hour in fresh_hours

    union all

    select
        event_type::String as event_type,
        app_version,
        1 as event_count
    from {{ events_of_periods() }}
{% endmacro %}
