{{ config(order_by='hour') }}

with
    stale_hours as ({{ stale_periods('hour', content_by_hour()) }}),

    events_counted as
    (
        select
            toStartOfHour(event_time) as hour,
            event_type,
            app_version,
            count() as event_count
        from {{ distinct_events('toStartOfHour(event_time) in (select hour from stale_hours)') }}
        group by hour, event_type, app_version
    ),

    hours_rolled_up as
    (
        select
            hour,
            sum(event_count) as events,
            cast(
                groupArray((event_type, app_version, event_count)),
                'Array(Tuple('
                || 'event_type LowCardinality(String), app_version LowCardinality(String), event_count UInt64))'
            ) as counts
        from events_counted
        group by hour
    )

select
    stale_hours.hour as hour,
    stale_hours.input_rows as input_rows,
    stale_hours.input_fingerprint as input_fingerprint,
    hours_rolled_up.events as events,
    hours_rolled_up.counts as counts,
    now64(3, 'UTC') as built_at
from stale_hours
left join hours_rolled_up using (hour)
