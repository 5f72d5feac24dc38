with
    sessions_counted as
    (
        select
            toDate(at) as day,
            assumeNotNull(part.country)::String as country,
            sum(total_sessions) + uniqExactArray(session_keys) as total_sessions,
            sum(total_users) + uniqExactArray(user_keys) as total_users
        from {{ ref('sessions_parts') }} as part
        where {{ asked_for() }} and (part.total_sessions = 0 or (part.country is not null and device_type is null))
        group by day, country
    )

select
    day,
    country,
    country_name,
    region,
    total_sessions,
    total_users
from sessions_counted
left join {{ ref('countries') }} as countries using (country)
where {{ asked('region') }} is null or region = {{ asked('region') }}
order by day desc, total_sessions desc, country asc
-- Whatever the user's profile says: what a seed does not list is empty text.
settings join_use_nulls = 0
