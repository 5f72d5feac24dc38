{{ config(materialized='view') }}
{% set rollups = {'events_by_type_periods': 3, 'event_properties_periods': 3, 'sessions_periods': 2} %}

-- Why an hour is answered from raw events: what app_events holds now beside what each rollup was built from.
{% for rollup, lengths in rollups.items() %}
select
    '{{ rollup }}' as rollup,
    period as hour,
    rows_now,
    rows_built,
    fingerprint_now,
    fingerprint_built,
    built_at
from ({{ stale_periods(ref(rollup), lengths) }}) as stale
left join {{ ref(rollup) }} as built final using (period)
where toSecond(period) = 0
{% if not loop.last %}union all{% endif %}
{% endfor %}
order by hour desc, rollup asc
