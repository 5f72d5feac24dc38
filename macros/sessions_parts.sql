{% macro sessions_parts(built) %}
{#-
    The parts of sessions: what the fresh periods in the relation `built` hold, and every event. Days hold finished
    counts, hours and events the 128-bit keys of their sessions and users, so that they can be added up exactly.
-#}
    {%- if built %}
    with {{ staleness(built, 2) }}

    {{ period_parts(built, 2, 'sessions', ['country', 'device_type', 'session_keys', 'user_keys', 'total_sessions', 'total_users']) }}

    union all
    {% endif %}
    select
        {{ event_parts(built) }},
        country::Nullable(String) as country,
        device_type::Nullable(String) as device_type,
        [{{ exact_key('session_id') }}] as session_keys,
        [{{ exact_key('user_id') }}] as user_keys,
        0 as total_sessions,
        0 as total_users
    from {{ distinct_events('true') }}
{% endmacro %}
