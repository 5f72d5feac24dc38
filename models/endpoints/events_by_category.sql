with
    {{ periods(ref('events_by_type_hourly'), ref('events_by_type_daily')) }},

    events_counted as ({{ events_by_type_and_version() }}),

    events_categorised as
    (
        select
            if(category = '', 'uncategorised', category) as category,
            event_count
        from events_counted
        left join {{ ref('event_categories') }} as event_categories using (event_type)
        where {{ matches('app_version') }}
    )

select
    category,
    sum(event_count) as event_count
from events_categorised
group by category
order by event_count desc, category asc
