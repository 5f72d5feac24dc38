{%- set sql_now = sql_hash(this.identifier, sessions_parts()) -%}
with
    stale_periods as ({{ stale_periods(this if is_incremental(), 2, sql_now) }}),

    parts_added_up as
    (
        select
            within,
            country,
            device_type,
            groupUniqArrayArray(session_keys) as session_keys,
            groupUniqArrayArray(user_keys) as user_keys
        from ({{ sessions_parts(this if is_incremental()) }})
        where within_is_stale
        group by within, country, device_type
    ),

    -- An hour keeps the keys by country and device type; a day counts them for every combination of the filters.
    periods_added_up as
    (
        select
            group.1 as period,
            group.2 as counted_country,
            group.3 as counted_device_type,
            toSecond(period) = 1 as is_day,
            groupUniqArrayArrayIf(session_keys, not is_day) as hour_session_keys,
            groupUniqArrayArrayIf(user_keys, not is_day) as hour_user_keys,
            uniqExactArrayIf(session_keys, is_day) as total_sessions,
            uniqExactArrayIf(user_keys, is_day) as total_users
        from
        (
            select
                *,
                arrayConcat(
                    if(toSecond(within) = 0, [(within, country, device_type)], []),
                    arrayMap(
                        combination -> ({{ day_of('within') }}, combination.1, combination.2),
                        [(country, device_type), (country, null), (null, device_type), (null, null)]
                    )
                ) as groups
            from parts_added_up
        )
        array join groups as group
        group by group
    ),

    periods_rolled_up as
    (
        select
            period,
            {{
                as_declared(
                    'groupArray((counted_country, counted_device_type, hour_session_keys, hour_user_keys, '
                    ~ 'total_sessions, total_users))',
                    'sessions'
                )
            }} as sessions
        from periods_added_up
        group by period
    )

select
    {{ period_around('period', 2) }} as within,
    period,
    rows_now as input_rows,
    fingerprint_now as input_fingerprint,
    sessions,
    {{ sql_now }}::UInt64 as built_by,
    now64(3, 'UTC') as built_at
from stale_periods
left join periods_rolled_up using (period)
