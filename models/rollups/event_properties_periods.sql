with
    stale_periods as ({{ stale_periods(this if is_incremental(), 3) }}),

    parts_added_up as
    (
        select
            within,
            event_type,
            property_key,
            property_value,
            sum(pair_count) as pair_count
        from ({{ event_properties_parts(this if is_incremental()) }})
        where within_is_stale
        group by within, event_type, property_key, property_value
    ),

    periods_added_up as
    (
        select
            period,
            event_type,
            property_key,
            property_value,
            sum(pair_count) as pair_count
        from parts_added_up
        array join arraySlice([{{ periods_around('within', 3) }}], toSecond(within) + 1) as period
        group by period, event_type, property_key, property_value
    ),

    periods_rolled_up as
    (
        select
            period,
            cast(
                groupArray((event_type, property_key, property_value, pair_count)),
                'Array(Tuple('
                || 'event_type LowCardinality(String), property_key LowCardinality(String), '
                || 'property_value String, pair_count UInt64))'
            ) as pairs
        from periods_added_up
        group by period
    )

select
    {{ period_around('period', 3) }} as within,
    period,
    rows_now as input_rows,
    fingerprint_now as input_fingerprint,
    pairs,
    now64(3, 'UTC') as built_at
from stale_periods
left join periods_rolled_up using (period)
