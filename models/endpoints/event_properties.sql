with
    {{ periods(ref('event_properties_hourly'), ref('event_properties_daily')) }},

    pairs_counted as
    (
        select
            pair.event_type as event_type,
            pair.property_key as property_key,
            pair.property_value as property_value,
            pair.pair_count as pair_count
        from {{ rollup_rows(ref('event_properties_daily'), ref('event_properties_hourly'), 'pairs') }}
        array join pairs as pair

        union all

        select
            event_type,
            pair.1 as property_key,
            pair.2 as property_value,
            1 as pair_count
        from {{ raw_events() }}
        array join {{ property_pairs('properties') }} as pair
    )

select
    event_type::String as event_type,
    property_key::String as property_key,
    property_value,
    sum(pair_count) as count
from pairs_counted
where
    ({event_type:Nullable(String)} is null or event_type = {event_type:Nullable(String)})
    and ({property_key:Nullable(String)} is null or property_key = {property_key:Nullable(String)})
group by event_type, property_key, property_value
order by count desc, event_type asc, property_key asc, property_value asc
limit least(coalesce({limit:Nullable(UInt64)}, 100), 10000)
