{% macro periods(hourly, daily) %}
{#-
    The split of [start_date, end_date] that makes an answer exact and fast, for the `with` of an endpoint:

        from_time, to_time    the bounds, both included
        periods.days          whole days whose row in `daily` is fresh
        periods.hours         other whole hours whose row in `hourly` is fresh
        periods.distinct      hours to read from app_events that are known to hold no event twice
        periods.unchecked     hours to read from app_events whose copies must be removed

    Fresh: built from the content that app_events has at this moment. A scalar, so it is evaluated once in a query and
    the reads that use it skip what they do not need.
-#}
    coalesce({start_date:Nullable(DateTime('UTC'))}, toDateTime(0, 'UTC')) as from_time,
    coalesce({end_date:Nullable(DateTime('UTC'))}, toDateTime(4294967295, 'UTC')) as to_time,
    (
        select
            cast(
                (
                    groupArrayIf(day, is_fresh),
                    groupArrayArrayIf(hours, not is_fresh),
                    groupArrayArrayIf(hours_distinct, not is_fresh),
                    groupArrayArrayIf(hours_unchecked, not is_fresh)
                ),
                'Tuple(days Array(Date), hours Array(DateTime(\'UTC\')), '
                || 'distinct Array(DateTime(\'UTC\')), unchecked Array(DateTime(\'UTC\')))'
            )
        from
        (
            select
                toDate(hour) as day,
                sum(rows_now) = sum(rows_in_day)
                and sum(content_now) = sum(content_in_day)
                and toInt64(toDateTime(day, 'UTC')) >= toInt64(from_time)
                and toInt64(toDateTime(day, 'UTC')) + 86399 <= toInt64(to_time) as is_fresh,
                groupArrayIf(hour, hour_is_fresh and hour_is_whole) as hours,
                groupArrayIf(hour, hour_is_fresh and not hour_is_whole and events = rows_now) as hours_distinct,
                groupArrayIf(
                    hour,
                    rows_now > 0 and not (hour_is_fresh and (hour_is_whole or events = rows_now))
                ) as hours_unchecked
            from
            (
                select
                    hour,
                    sum(now_rows) as rows_now,
                    sum(now_content) as content_now,
                    sum(hour_events) as events,
                    sum(day_rows) as rows_in_day,
                    sum(day_content) as content_in_day,
                    rows_now > 0 and rows_now = sum(hour_rows) and content_now = sum(hour_content) as hour_is_fresh,
                    toInt64(hour) >= toInt64(from_time) and toInt64(hour) + 3599 <= toInt64(to_time) as hour_is_whole
                from
                (
                    select
                        hour,
                        input_rows as now_rows,
                        input_fingerprint as now_content,
                        toUInt64(0) as hour_rows,
                        toUInt64(0) as hour_content,
                        toUInt64(0) as hour_events,
                        toUInt64(0) as day_rows,
                        toUInt64(0) as day_content
                    from ({{ content_by_hour("toStartOfHour(event_time) between toStartOfHour(from_time) and to_time") }})

                    union all

                    select hour, 0, 0, input_rows, input_fingerprint, events, 0, 0
                    from {{ hourly }} final
                    where hour between toStartOfHour(from_time) and to_time

                    union all

                    select toDateTime(day, 'UTC'), 0, 0, 0, 0, 0, input_rows, input_fingerprint
                    from {{ daily }} final
                    where day between toDate(from_time) and toDate(to_time)
                )
                group by hour
            )
            group by day
        )
    ) as periods
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
    where toStartOfHour(event_time) in periods.distinct and event_time between from_time and to_time

    union all

    select *
    from {{ distinct_events('toStartOfHour(event_time) in periods.unchecked and event_time between from_time and to_time') }}
)
{% endmacro %}
