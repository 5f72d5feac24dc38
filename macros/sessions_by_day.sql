{% macro sessions_by_day() %}
{#- Sessions seen on each day in the hours that no finished day answers; to be used beside periods(). -#}
    select
        toDate(hour) as day,
        session.country as country,
        session.device_type as device_type,
        session.session_key as session_key,
        session.user_key as user_key
    from {{ ref('sessions_hourly') }} final
    array join sessions as session
    where (false, hour) in fresh_periods

    union all

    select
        toDate(event_time) as day,
        country,
        device_type,
        {{ exact_key('session_id') }} as session_key,
        {{ exact_key('user_id') }} as user_key
    from {{ raw_events() }}
{% endmacro %}
