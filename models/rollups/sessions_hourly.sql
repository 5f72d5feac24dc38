{{ config(order_by='hour') }}

with
    stale_hours as ({{ stale_periods('hour', content_by_hour()) }}),

    sessions_seen as
    (
        select
            toStartOfHour(event_time) as hour,
            country,
            device_type,
            {{ exact_key('session_id') }} as session_key,
            {{ exact_key('user_id') }} as user_key,
            count() as event_count
        from {{ distinct_events('toStartOfHour(event_time) in (select hour from stale_hours)') }}
        group by hour, country, device_type, session_key, user_key
    ),

    hours_rolled_up as
    (
        select
            hour,
            sum(event_count) as events,
            cast(
                groupArray((country, device_type, session_key, user_key)),
                'Array(Tuple('
                || 'country LowCardinality(String), device_type LowCardinality(String), '
                || 'session_key UInt128, user_key UInt128))'
            ) as sessions
        from sessions_seen
        group by hour
    )

select
    stale_hours.hour as hour,
    stale_hours.input_rows as input_rows,
    stale_hours.input_fingerprint as input_fingerprint,
    hours_rolled_up.events as events,
    hours_rolled_up.sessions as sessions,
    now64(3, 'UTC') as built_at
from stale_hours
left join hours_rolled_up using (hour)
