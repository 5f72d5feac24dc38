select
    event_type::String as event_type,
    sum(event_count) as event_count
from {{ ref('events_by_type_parts') }}
where {{ asked_for() }} and {{ matches('app_version') }}
group by event_type
order by event_count desc, event_type asc
