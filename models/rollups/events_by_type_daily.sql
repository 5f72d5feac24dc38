{{ config(order_by='day') }}

with
    stale_days as ({{ stale_periods('day', content_by_day(ref('events_by_type_hourly'))) }}),

    events_counted as
    (
        select
            toDate(hour) as day,
            count.event_type as event_type,
            count.app_version as app_version,
            sum(count.event_count) as event_count
        from {{ ref('events_by_type_hourly') }} final
        array join counts as count
        where toDate(hour) in (select day from stale_days)
        group by day, event_type, app_version
    ),

    days_rolled_up as
    (
        select
            day,
            cast(
                groupArray((event_type, app_version, event_count)),
                'Array(Tuple('
                || 'event_type LowCardinality(String), app_version LowCardinality(String), event_count UInt64))'
            ) as counts
        from events_counted
        group by day
    )

select
    stale_days.day as day,
    stale_days.input_rows as input_rows,
    stale_days.input_fingerprint as input_fingerprint,
    days_rolled_up.counts as counts,
    now64(3, 'UTC') as built_at
from stale_days
left join days_rolled_up using (day)
