{% macro events_by_type_parts(built) %}
{#- The parts of events_by_type; an event counts as one. -#}
{% call parts(built, 3, 'counts', ['event_type', 'app_version', 'event_count']) %}
    select
        {{ event_part() }},
        event_type,
        app_version,
        1 as event_count
    from {{ distinct_events('true') }}
{% endcall %}
{% endmacro %}
