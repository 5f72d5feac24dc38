{{ config(tags=['reads_every_event']) }}

-- What fresh hours say and what app_events holds must be the same number of distinct events; stale hours do not count.
with
    events_now as
    (
        select
            toStartOfHour(event_time) as hour,
            count() as events
        from {{ distinct_events('toStartOfHour(event_time) in (select hour from ' ~ ref('events_by_type_hourly') ~ ')') }}
        group by hour
    ),

    content_now as ({{ content_by_hour() }}),

    rollups as
    (
        select 'events_by_type_hourly' as rollup, hour, input_rows, input_fingerprint, arraySum(counts.event_count) as events
        from {{ ref('events_by_type_hourly') }} final
        union all
        select 'event_properties_hourly', hour, input_rows, input_fingerprint, events
        from {{ ref('event_properties_hourly') }} final
        union all
        select 'sessions_hourly', hour, input_rows, input_fingerprint, events
        from {{ ref('sessions_hourly') }} final
    )

select
    rollup,
    hour,
    rollups.events as events_in_rollup,
    events_now.events as events_now
from rollups
inner join content_now using (hour, input_rows, input_fingerprint)
inner join events_now using (hour)
where rollups.events != events_now.events
