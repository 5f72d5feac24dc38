with
    {{ periods(ref('events_by_type_hourly'), ref('events_by_type_daily')) }},

    events_counted as ({{ events_by_type_and_version() }})

select
    event_type,
    sum(event_count) as event_count
from events_counted
where {{ matches('app_version') }}
group by event_type
order by event_count desc, event_type asc
