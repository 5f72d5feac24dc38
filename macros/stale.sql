{#-
    A period (an hour or a day) is stale if and only if the content of its input differs from what its row was built
    from: the number of input rows and the sum of their content hashes. No clock and no look-back window takes part, so
    late events, deletes, crashes and repeated runs need no special case. See docs/exactness.md.
-#}

{% macro content_by_hour(where='true') %}
    {#- Must be grouped and filtered by toStartOfHour(event_time): then the projection content_by_hour answers it. -#}
    select
        toStartOfHour(event_time) as hour,
        count() as input_rows,
        sum(content_hash) as input_fingerprint
    from {{ source('landing', 'app_events') }}
    where {{ where }}
    group by hour
{% endmacro %}

{% macro content_by_day(hourly) %}
    select
        toDate(hour) as day,
        sum(input_rows) as input_rows,
        sum(input_fingerprint) as input_fingerprint
    from {{ hourly }} final
    group by day
{% endmacro %}

{% macro stale_periods(period, content) %}
    {#- One row per stale `period` of this model, with the content that its new row is built from; a period whose input is gone has none. -#}
    {%- if is_incremental() %}
    select
        {{ period }},
        content.input_rows as input_rows,
        content.input_fingerprint as input_fingerprint
    from ({{ content }}) as content
    full outer join
        (select {{ period }}, input_rows, input_fingerprint from {{ this }} final) as built
        using ({{ period }})
    where (content.input_rows, content.input_fingerprint) != (built.input_rows, built.input_fingerprint)
    {%- else %}
    {{ content }}
    {%- endif %}
{% endmacro %}

{% macro content_built(hourly_rollups) %}
    {#- What each hour of each of these rollups was built from. -#}
    {%- for rollup in hourly_rollups %}
    select
        '{{ rollup }}' as rollup,
        hour,
        input_rows,
        input_fingerprint,
        built_at
    from {{ ref(rollup) }} final
    {% if not loop.last %}union all{% endif %}
    {%- endfor %}
{% endmacro %}
