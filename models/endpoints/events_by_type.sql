with
    {{ periods(ref('events_by_type_hourly'), ref('events_by_type_daily')) }},

    events_counted as
    (
        select
            count.event_type as event_type,
            count.app_version as app_version,
            count.event_count as event_count
        from {{ ref('events_by_type_daily') }} final
        array join counts as count
        where day in periods.days

        union all

        select
            count.event_type as event_type,
            count.app_version as app_version,
            count.event_count as event_count
        from {{ ref('events_by_type_hourly') }} final
        array join counts as count
        where hour in periods.hours

        union all

        select
            event_type,
            app_version,
            1 as event_count
        from {{ events_of_periods() }}
    )

select
    event_type::String as event_type,
    sum(event_count) as event_count
from events_counted
where {{ matches('app_version') }}
group by event_type
order by event_count desc, event_type asc
