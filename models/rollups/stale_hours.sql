{{ config(materialized='view') }}
{% set rollups = ['events_by_type_hourly', 'event_properties_hourly', 'sessions_hourly'] %}

-- Why an hour is answered from raw events: what app_events holds now beside what each rollup was built from.
with
    content_now as ({{ content_by_hour() }}),

    content_built as ({{ content_built(rollups) }}),

    rollups as
    (
        select arrayJoin({{ rollups }}) as rollup
    )

select
    rollup,
    hour,
    content_now.input_rows as rows_now,
    content_built.input_rows as rows_built,
    content_now.input_fingerprint as fingerprint_now,
    content_built.input_fingerprint as fingerprint_built,
    built_at
from (select * from content_now cross join rollups) as content_now
full outer join content_built using (rollup, hour)
where (rows_now, fingerprint_now) != (rows_built, fingerprint_built)
order by hour desc, rollup asc
