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
                    groupArrayIf(day, day_is_fresh),
                    groupArrayArrayIf(hours_fresh, not day_is_fresh),
                    groupArrayArrayIf(hours_distinct, not day_is_fresh),
                    groupArrayArrayIf(hours_unchecked, not day_is_fresh)
                ),
                'Tuple(days Array(Date), hours Array(DateTime(\'UTC\')), distinct Array(DateTime(\'UTC\')), unchecked Array(DateTime(\'UTC\')))'
            )
        from
        (
            select
                toDate(hour) as day,
                sum(content.1) > 0
                and (sum(content.1), sum(content.2)) = (sum(daily_built.1), sum(daily_built.2))
                and toInt64(toDateTime(day, 'UTC')) >= toInt64(from_time)
                and toInt64(toDateTime(day, 'UTC')) + 86399 <= toInt64(to_time) as day_is_fresh,
                groupArrayIf(hour, is_fresh and is_whole) as hours_fresh,
                groupArrayIf(hour, is_fresh and not is_whole and built.3 = content.1) as hours_distinct,
                groupArrayIf(hour, content.1 > 0 and not (is_fresh and (is_whole or built.3 = content.1))) as hours_unchecked
            from
            (
                select
                    hour,
                    (sumIf(input_rows, level = 0), sumIf(input_fingerprint, level = 0)) as content,
                    (sumIf(input_rows, level = 1), sumIf(input_fingerprint, level = 1), sumIf(events, level = 1)) as built,
                    (sumIf(input_rows, level = 2), sumIf(input_fingerprint, level = 2)) as daily_built,
                    content.1 > 0 and (built.1, built.2) = content as is_fresh,
                    toInt64(hour) >= toInt64(from_time) and toInt64(hour) + 3599 <= toInt64(to_time) as is_whole
                from
                (
                    select 0 as level, hour, input_rows, input_fingerprint, toUInt64(0) as events
                    from ({{ content_by_hour("toStartOfHour(event_time) between toStartOfHour(from_time) and to_time") }})
                    union all
                    select 1, hour, input_rows, input_fingerprint, events
                    from {{ hourly }} final
                    where hour between toStartOfHour(from_time) and to_time
                    union all
                    select 2, toDateTime(day, 'UTC'), input_rows, input_fingerprint, toUInt64(0)
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
