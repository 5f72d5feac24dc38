{{ config(order_by='hour') }}

with
    stale_hours as ({{ stale_periods('hour', content_by_hour()) }}),

    events_distinct as
    (
        select
            toStartOfHour(event_time) as hour,
            event_type,
            properties
        from {{ distinct_events('toStartOfHour(event_time) in (select hour from stale_hours)') }}
    ),

    pairs_counted as
    (
        select
            hour,
            event_type,
            pair.1 as property_key,
            pair.2 as property_value,
            count() as pair_count
        from events_distinct
        array join {{ property_pairs('properties') }} as pair
        group by hour, event_type, property_key, property_value
    ),

    hours_rolled_up as
    (
        select
            hour,
            cast(
                groupArray((event_type, property_key, property_value, pair_count)),
                'Array(Tuple('
                || 'event_type LowCardinality(String), property_key LowCardinality(String), '
                || 'property_value String, pair_count UInt64))'
            ) as pairs
        from pairs_counted
        group by hour
    ),

    events_counted as
    (
        select
            hour,
            count() as events
        from events_distinct
        group by hour
    )

select
    stale_hours.hour as hour,
    stale_hours.input_rows as input_rows,
    stale_hours.input_fingerprint as input_fingerprint,
    events_counted.events as events,
    hours_rolled_up.pairs as pairs,
    now64(3, 'UTC') as built_at
from stale_hours
left join events_counted using (hour)
left join hours_rolled_up using (hour)
