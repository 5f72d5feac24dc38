select
    event_type::String as event_type,
    property_key::String as property_key,
    property_value,
    sum(pair_count) as count
from {{ ref('event_properties_parts') }}
where
    {{ asked_for() }}
    and ({event_type:Nullable(String)} is null or event_type = {event_type:Nullable(String)})
    and ({property_key:Nullable(String)} is null or property_key = {property_key:Nullable(String)})
group by event_type, property_key, property_value
order by count desc, event_type asc, property_key asc, property_value asc
limit least(coalesce({limit:Nullable(UInt64)}, 100), 10000)
