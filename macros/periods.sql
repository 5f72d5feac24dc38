{% macro periods(hourly, daily) %}
{#-
    The split of [start_date, end_date] that makes an answer exact and fast, for the `with` of an endpoint:

        from_time, to_time    the bounds, both included
        fresh_days            whole days whose row in `daily` is fresh
        fresh_hours           other whole hours whose row in `hourly` is fresh
        distinct_hours        hours to read from app_events that are known to hold no event twice
        unchecked_hours       hours to read from app_events whose copies must be removed

    Fresh: built from the content that app_events has at this moment. A scalar subquery, so that it runs once and its
    arrays are constants for the reads that use them. ClickHouse resolves it again at each use, so every function in it
    costs (25 to 50 us, twice four times): it has as few as possible.
-#}
    coalesce({start_date:Nullable(DateTime('UTC'))}, toDateTime(0, 'UTC')) as from_time,
    coalesce({end_date:Nullable(DateTime('UTC'))}, toDateTime(4294967295, 'UTC')) as to_time,
    (
        select
            (
                groupArrayIf(day, is_fresh),
                groupArrayArrayIf(fresh, not is_fresh),
                groupArrayArrayIf(known, not is_fresh),
                groupArrayArrayIf(unknown, not is_fresh)
            )
        from
        (
            select
                toDate(hour) as day,
                (day, sum(input_rows), sum(input_fingerprint)) in
                (
                    select
                        day,
                        input_rows,
                        input_fingerprint
                    from {{ daily }} final
                    where toInt64(toDateTime(day, 'UTC')) between toInt64(from_time) and toInt64(to_time) - 86399
                ) as is_fresh,
                groupArrayIf(hour, hour_is_fresh) as fresh,
                groupArrayIf(hour, hour_is_distinct and not hour_is_fresh) as known,
                groupArrayIf(hour, not hour_is_distinct and not hour_is_fresh) as unknown
            from
            (
                select
                    hour,
                    input_rows,
                    input_fingerprint,
                    (hour, input_rows, input_fingerprint) in
                    (
                        select
                            hour,
                            input_rows,
                            input_fingerprint
                        from {{ hourly }} final
                        where toInt64(hour) between toInt64(from_time) and toInt64(to_time) - 3599
                    ) as hour_is_fresh,
                    (hour, input_rows, input_fingerprint) in
                    (
                        select
                            hour,
                            events,
                            input_fingerprint
                        from {{ hourly }} final
                        where hour in (toStartOfHour(from_time), toStartOfHour(to_time))
                    ) as hour_is_distinct
                from ({{ content_by_hour("toStartOfHour(event_time) between toStartOfHour(from_time) and to_time") }})
            )
            group by day
        )
    ) as periods,
    periods.1 as fresh_days,
    periods.2 as fresh_hours,
    periods.3 as distinct_hours,
    periods.4 as unchecked_hours
{% endmacro %}

{% macro events_of_periods() %}
{#- The distinct events between from_time and to_time in the hours that no rollup answers; to be used beside periods(). -#}
(
    select
        event_id,
        user_id,
        event_type,
        event_time,
        app_version,
        device_type,
        os_version,
        country,
        properties,
        session_id
    from {{ source('landing', 'app_events') }}
    where toStartOfHour(event_time) in distinct_hours and event_time between from_time and to_time

    union all

    select *
    from {{ distinct_events('toStartOfHour(event_time) in unchecked_hours and event_time between from_time and to_time') }}
)
{% endmacro %}
