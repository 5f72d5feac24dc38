with
    {{ periods(ref('sessions_hourly'), ref('daily_sessions')) }},

    days_finished as
    (
        select
            day,
            count.total_sessions as total_sessions,
            count.total_users as total_users
        from {{ ref('daily_sessions') }} final
        array join counts as count
        where
            (true, toDateTime(day, 'UTC')) in fresh_periods
            and count.country is not distinct from {{ requested('country') }}
            and count.device_type is not distinct from {{ requested('device_type') }}
    ),

    sessions_seen as ({{ sessions_by_day() }}),

    days_counted as
    (
        select
            day,
            uniqExact(session_key) as total_sessions,
            uniqExact(user_key) as total_users
        from sessions_seen
        where {{ matches('country') }} and {{ matches('device_type') }}
        group by day
    )

select
    day,
    total_sessions,
    total_users,
    total_sessions / total_users as sessions_per_user
from (select * from days_finished union all select * from days_counted)
order by day desc
