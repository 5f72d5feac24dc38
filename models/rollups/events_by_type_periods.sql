with
    stale_periods as ({{ stale_periods(this if is_incremental(), 3) }}),

    parts_added_up as
    (
        select
            within,
            event_type,
            app_version,
            sum(event_count) as event_count
        from ({{ events_by_type_parts(this if is_incremental()) }})
        where within_is_stale
        group by within, event_type, app_version
    ),

    periods_added_up as
    (
        select
            period,
            event_type,
            app_version,
            sum(event_count) as event_count
        from parts_added_up
        array join arraySlice([{{ periods_around('within', 3) }}], toSecond(within) + 1) as period
        group by period, event_type, app_version
    ),

    periods_rolled_up as
    (
        select
            period,
            cast(
                groupArray((event_type, app_version, event_count)),
                'Array(Tuple('
                || 'event_type LowCardinality(String), app_version LowCardinality(String), event_count UInt64))'
            ) as counts
        from periods_added_up
        group by period
    )

select
    {{ period_around('period', 3) }} as within,
    period,
    rows_now as input_rows,
    fingerprint_now as input_fingerprint,
    counts,
    now64(3, 'UTC') as built_at
from stale_periods
left join periods_rolled_up using (period)
