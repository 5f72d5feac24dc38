{{ config(order_by='day') }}

with
    stale_days as ({{ stale_periods('day', content_by_day(ref('sessions_hourly'))) }}),

    sessions_counted as
    (
        select
            toDate(hour) as day,
            if(grouping(country) = 0, country, null) as counted_country,
            if(grouping(device_type) = 0, device_type, null) as counted_device_type,
            uniqExact(session.session_key) as total_sessions,
            uniqExact(session.user_key) as total_users
        from
        (
            select
                hour,
                session,
                session.country::String as country,
                session.device_type::String as device_type
            from {{ ref('sessions_hourly') }} final
            array join sessions as session
            where toDate(hour) in (select day from stale_days)
        )
        group by grouping sets ((day), (day, country), (day, device_type), (day, country, device_type))
    ),

    days_rolled_up as
    (
        select
            day,
            cast(
                groupArray((counted_country, counted_device_type, total_sessions, total_users)),
                'Array(Tuple('
                || 'country Nullable(String), device_type Nullable(String), '
                || 'total_sessions UInt64, total_users UInt64))'
            ) as counts
        from sessions_counted
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
