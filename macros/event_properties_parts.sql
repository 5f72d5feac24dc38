{% macro event_properties_parts(built) %}
{#- The parts of event_properties; an event counts as one for each of its pairs. -#}
{% call parts(built, 3, 'pairs', ['event_type', 'property_key', 'property_value', 'pair_count']) %}
    select
        {{ event_part() }},
        event_type,
        pair.1 as property_key,
        pair.2 as property_value,
        1 as pair_count
    from {{ distinct_events('true') }}
    array join {{ property_pairs('properties') }} as pair
{% endcall %}
{% endmacro %}
