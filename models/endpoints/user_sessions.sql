select
    toDate(at) as day,
    sum(total_sessions) + uniqExactArray(session_keys) as total_sessions,
    sum(total_users) + uniqExactArray(user_keys) as total_users,
    total_sessions / total_users as sessions_per_user
from {{ ref('sessions_parts') }} as part
where
    {{ asked_for() }}
    and if(
        -- A finished day, null standing for any.
        part.total_sessions > 0,
        country is not distinct from {{ requested('country') }}
        and device_type is not distinct from {{ requested('device_type') }},
        {{ matches('country') }} and {{ matches('device_type') }}
    )
group by day
order by day desc
