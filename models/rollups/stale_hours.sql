{{ config(materialized='view') }}
{% set rollups = {
    'events_by_type_periods': [3, events_by_type_parts()],
    'event_properties_periods': [3, event_properties_parts()],
    'sessions_periods': [2, sessions_parts()],
} %}

-- Why an hour is answered from raw events: what app_events holds now beside what each rollup was built from.
{% for rollup, (lengths, parts_of_events) in rollups.items() %}
{% set sql_now = sql_hash(rollup, parts_of_events) %}
select
    '{{ rollup }}' as rollup,
    period as hour,
    rows_now,
    rows_built,
    fingerprint_now,
    fingerprint_built,
    built_by not in (0, {{ sql_now }}) as is_of_other_sql,
    built_at
from ({{ stale_periods(ref(rollup), lengths, sql_now) }}) as stale
left join {{ ref(rollup) }} as built final using (period)
where toSecond(period) = 0
{% if not loop.last %}union all{% endif %}
{% endfor %}
order by hour desc, rollup asc
