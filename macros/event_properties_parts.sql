{% macro event_properties_parts(built) %}
{#- The parts of event_properties: what the fresh periods in the relation `built` hold, and every event's pairs. -#}
    {%- if built %}
    with {{ staleness(built, 3) }}

    {{ period_parts(built, 3, 'pairs', ['event_type', 'property_key', 'property_value', 'pair_count']) }}

    union all
    {% endif %}
    select
        {{ event_parts(built) }},
        event_type,
        pair.1 as property_key,
        pair.2 as property_value,
        1 as pair_count
    from {{ distinct_events('true') }}
    array join {{ property_pairs('properties') }} as pair
{% endmacro %}
