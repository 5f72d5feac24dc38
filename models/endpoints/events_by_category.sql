with
    events_categorised as
    (
        select
            if(category = '', 'uncategorised', category) as category,
            event_count
        from
        (
            select
                event_type::String as event_type,
                sum(event_count) as event_count
            from {{ ref('events_by_type_parts') }}
            where {{ asked_for() }} and {{ matches('app_version') }}
            group by event_type
        ) as events_counted
        left join {{ ref('event_categories') }} as event_categories using (event_type)
    )

select
    category,
    sum(event_count) as event_count
from events_categorised
group by category
order by event_count desc, category asc
-- Whatever the user's profile says: what a seed does not list is empty text.
settings join_use_nulls = 0
