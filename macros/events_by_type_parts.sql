{% macro events_by_type_parts(built) %}
{#- The parts of events_by_type: what the fresh periods in the relation `built` hold, and every event; one of them counts. -#}
    {%- if built %}
    with {{ staleness(built, 3) }}

    {{ period_parts(built, 3, 'counts', ['event_type', 'app_version', 'event_count']) }}

    union all
    {% endif %}
    select
        {{ event_parts(built) }},
        event_type,
        app_version,
        1 as event_count
    from {{ distinct_events('true') }}
{% endmacro %}
