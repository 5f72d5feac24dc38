{% macro periods(hourly, daily) %}
{#-
    The split of [start_date, end_date] that makes an answer exact and fast, for the `with` of an endpoint:

        from_time, to_time    the bounds, both included
        fresh_periods         (is_day, period): whole days whose row in `daily` is fresh, and of the other days the whole
                              hours whose row in `hourly` is; `period` is where they start
        raw_hours             the hours to read from app_events

    Fresh: built from the content that app_events has at this moment. A scalar subquery, so that it runs once and its
    arrays are constants for the reads that use them. ClickHouse resolves it anew at each use, twice, and each function
    in it costs 25 to 50 us of that: few uses and few functions.
-#}
    coalesce({start_date:Nullable(DateTime('UTC'))}, toDateTime(0, 'UTC')) as from_time,
    coalesce({end_date:Nullable(DateTime('UTC'))}, toDateTime(4294967295, 'UTC')) as to_time,
    (
        select (groupArrayArray(fresh), groupArrayArray(raw))
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
                ) as day_is_fresh,
                if(
                    day_is_fresh,
                    [(true, toDateTime(day, 'UTC'))],
                    groupArrayIf((false, hour), hour_is_fresh)
                ) as fresh,
                if(day_is_fresh, [], groupArrayIf(hour, not hour_is_fresh)) as raw
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
                    ) as hour_is_fresh
                from ({{ content_by_hour("toStartOfHour(event_time) between toStartOfHour(from_time) and to_time") }})
            )
            group by day
        )
    ) as periods,
    periods.1 as fresh_periods,
    periods.2 as raw_hours
{% endmacro %}

{% macro rollup_rows(daily, hourly, result) %}
{#- What the finished days and hours hold of the split; to be used beside periods() of the same two tables. -#}
(
    select {{ result }}
    from
    (
        select
            true as is_day,
            toDateTime(day, 'UTC') as period,
            {{ result }}
        from {{ daily }} final

        union all

        select
            false as is_day,
            hour as period,
            {{ result }}
        from {{ hourly }} final
    )
    where (is_day, period) in fresh_periods
)
{% endmacro %}

{% macro raw_events() %}
{#- The distinct events between from_time and to_time in the hours that no rollup answers; to be used beside periods(). -#}
{{ distinct_events('toStartOfHour(event_time) in raw_hours and event_time between from_time and to_time') }}
{% endmacro %}
