select
    event_type::String as event_type,
    property_key::String as property_key,
    property_value,
    sum(pair_count) as count
from {{ ref('event_properties_parts') }}
where
    {{ asked_for() }}
    and ({{ asked('event_type') }} is null or event_type = {{ asked('event_type') }})
    and ({{ asked('property_key') }} is null or property_key = {{ asked('property_key') }})
group by event_type, property_key, property_value
order by count desc, event_type asc, property_key asc, property_value asc
limit least(coalesce({{ asked('limit', 'UInt64') }}, 100), 10000)
