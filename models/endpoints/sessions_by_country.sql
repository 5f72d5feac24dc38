with
    {{ periods(ref('sessions_hourly'), ref('daily_sessions')) }},

    days_finished as
    (
        select
            day,
            assumeNotNull(count.country) as country,
            count.total_sessions as total_sessions,
            count.total_users as total_users
        from {{ ref('daily_sessions') }} final
        array join counts as count
        where (true, toDateTime(day, 'UTC')) in fresh_periods and count.country is not null and count.device_type is null
    ),

    sessions_seen as ({{ sessions_by_day() }}),

    days_counted as
    (
        select
            day,
            country::String as country,
            uniqExact(session_key) as total_sessions,
            uniqExact(user_key) as total_users
        from sessions_seen
        group by day, country
    )

select
    day,
    country,
    country_name,
    region,
    total_sessions,
    total_users
from (select * from days_finished union all select * from days_counted) as days
left join {{ ref('countries') }} as countries using (country)
where {region:Nullable(String)} is null or region = {region:Nullable(String)}
order by day desc, total_sessions desc, country asc
