{{ config(order_by='day') }}

with
    stale_days as ({{ stale_periods('day', content_by_day(ref('event_properties_hourly'))) }}),

    pairs_counted as
    (
        select
            toDate(hour) as day,
            pair.event_type as event_type,
            pair.property_key as property_key,
            pair.property_value as property_value,
            sum(pair.pair_count) as pair_count
        from {{ ref('event_properties_hourly') }} final
        array join pairs as pair
        where toDate(hour) in (select day from stale_days)
        group by day, event_type, property_key, property_value
    ),

    days_rolled_up as
    (
        select
            day,
            cast(
                groupArray((event_type, property_key, property_value, pair_count)),
                'Array(Tuple('
                || 'event_type LowCardinality(String), property_key LowCardinality(String), '
                || 'property_value String, pair_count UInt64))'
            ) as pairs
        from pairs_counted
        group by day
    )

select
    stale_days.day as day,
    stale_days.input_rows as input_rows,
    stale_days.input_fingerprint as input_fingerprint,
    days_rolled_up.pairs as pairs,
    now64(3, 'UTC') as built_at
from stale_days
left join days_rolled_up using (day)
