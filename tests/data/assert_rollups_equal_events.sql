{{ config(tags=['reads_every_event']) }}

-- What the rollups answer and what app_events holds must be the same, hour by hour.
with
    events_now as
    (
        select
            toStartOfHour(event_time) as hour,
            count() as events,
            sum(length({{ property_pairs('properties') }})) as pairs,
            uniqExact(session_id) as sessions
        from {{ distinct_events('true') }}
        group by hour
    ),

    rolled_up as
    (
        select
            period as hour,
            arraySum(counts.event_count) as events,
            arraySum(pairs.pair_count) as pairs,
            length(arrayDistinct(arrayFlatten(sessions.session_keys))) as sessions
        from (select period, counts from {{ ref('events_by_type_periods') }} final where toSecond(period) = 0) as types
        inner join (select period, pairs from {{ ref('event_properties_periods') }} final) as properties using (period)
        inner join (select period, sessions from {{ ref('sessions_periods') }} final) as seen using (period)
        where period not in (select hour from {{ ref('stale_hours') }})
    )

select
    hour,
    rolled_up.events as events_in_rollup,
    events_now.events as events_now,
    rolled_up.pairs as pairs_in_rollup,
    events_now.pairs as pairs_now,
    rolled_up.sessions as sessions_in_rollup,
    events_now.sessions as sessions_now
from rolled_up
left join events_now using (hour)
where (events_in_rollup, pairs_in_rollup, sessions_in_rollup) != (events_now, pairs_now, sessions_now)
