{% macro sessions_parts(built) %}
{#-
    The parts of sessions. Days hold finished counts, hours and events the 128-bit keys of their sessions and users, so that
    they can be added up exactly.
-#}
{%- set columns = ['country', 'device_type', 'session_keys', 'user_keys', 'total_sessions', 'total_users'] -%}
{% call parts(built, 2, 'sessions', columns) %}
    select
        {{ event_part() }},
        country::Nullable(String) as country,
        device_type::Nullable(String) as device_type,
        [{{ exact_key('session_id') }}] as session_keys,
        [{{ exact_key('user_id') }}] as user_keys,
        0 as total_sessions,
        0 as total_users
    from {{ distinct_events('true') }}
{% endcall %}
{% endmacro %}
