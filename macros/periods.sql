{#-
    A period (1: an hour, 2: a day, 3: a month; UTC) is stale if and only if the content of its input differs from what
    its row was built from: the number of input rows and the sum of their content hashes. No clock and no look-back
    window takes part, so late events, deletes, crashes and repeated runs need no special case. See docs/exactness.md.
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

{% macro start_of_month(time) -%}
toDateTime(toStartOfMonth({{ time }}), 'UTC')
{%- endmacro %}

{% macro periods_around(time, grains) -%}
{#- The periods that hold a time, finest first, as [(grain, starts), …]. -#}
[(1, toStartOfHour({{ time }})), (2, toStartOfDay({{ time }})){% if grains == 3 %}, (3, {{ start_of_month(time) }}){% endif %}]
{%- endmacro %}

{% macro periods_compared(built, grains) %}
    {#- One row per period: what app_events holds of it now, and what its row in the relation `built` was built from. -#}
    select
        grain,
        starts,
        sum(rows_now) as rows_now,
        sum(fingerprint_now) as fingerprint_now,
        sum(rows_built) as rows_built,
        sum(fingerprint_built) as fingerprint_built
    from
    (
        select
            period.1 as grain,
            period.2 as starts,
            input_rows as rows_now,
            input_fingerprint as fingerprint_now,
            0 as rows_built,
            0 as fingerprint_built
        from ({{ content_by_hour() }})
        array join {{ periods_around('hour', grains) }} as period
        {% if built %}
        union all

        select
            grain,
            starts,
            0 as rows_now,
            0 as fingerprint_now,
            input_rows as rows_built,
            input_fingerprint as fingerprint_built
        from {{ built }} final
        {% endif %}
    )
    group by grain, starts
{% endmacro %}

{% macro stale_periods(built, grains) %}
    {{ periods_compared(built, grains) }}
    having (rows_now, fingerprint_now) != (rows_built, fingerprint_built)
{% endmacro %}

{% macro staleness(built, grains) %}
{#-
    For the `with` of parts. A scalar subquery, so that it runs once and its arrays are constants for the reads that use
    them: the stale periods with those around them, as [(grain, starts), …], and the stale hours.
-#}
    (
        select
            (
                groupUniqArrayArray(arraySlice({{ periods_around('starts', grains) }}, grain)),
                groupUniqArrayIf(starts, grain = 1)
            )
        from ({{ stale_periods(built, grains) }})
    ) as stale
{% endmacro %}

{% macro period_parts(built, grains, result, columns) %}
    {#- The fresh periods of a rollup as parts: the members of its array `result`, by the names in `columns`. -#}
    select
        {{ period_bounds(grains) }},
        {%- for column in columns %}
        part.{{ column }} as {{ column }}{{ ',' if not loop.last }}
        {%- endfor %}
    from {{ built }} final
    array join {{ result }} as part
    where (grain, starts) not in stale.1
    settings optimize_move_to_prewhere_if_final = 1
{% endmacro %}

{% macro event_parts(built) %}
        {#- The columns that make an event a part. -#}
        0 as grain,
        event_time as starts,
        toInt64(event_time) as ends,
        toStartOfHour(event_time) as within_starts,
        toInt64(within_starts) + 3599 as within_ends,
        {{ 'within_starts in stale.2' if built else 'true' }} as within_is_stale
{%- endmacro %}

{% macro period_bounds(grains) %}
        {#- Where a period lies and what lies around it, from grain and starts. Seconds since 1970 do not overflow in 2106. -#}
        grain,
        starts,
        multiIf(
            grain = 1, toInt64(starts) + 3599,
            {%- if grains == 3 %}
            grain = 3, {{ last_second_of_month('starts') }},
            {%- endif %}
            toInt64(starts) + 86399
        ) as ends,
        {%- if grains == 3 %}
        if(grain = 1, toStartOfDay(starts), {{ start_of_month('starts') }}) as within_starts,
        if(grain = 1, toInt64(within_starts) + 86399, {{ last_second_of_month('starts') }}) as within_ends,
        {%- else %}
        toStartOfDay(starts) as within_starts,
        toInt64(within_starts) + 86399 as within_ends,
        {%- endif %}
        grain = {{ grains }} or (grain + 1, within_starts) in stale.1 as within_is_stale
{%- endmacro %}

{% macro last_second_of_month(time) -%}
86400 * toInt64(toLastDayOfMonth({{ time }})) + 86399
{%- endmacro %}

{% macro asked_for() -%}
{#-
    The split of [start_date, end_date]: the parts that lie in it, each unless the period around it answers for it, which
    is fresh and lies in the range as well.
-#}
starts >= (coalesce({{ asked('start_date', "DateTime('UTC')") }}, toDateTime(0, 'UTC')) as from_time)
    and starts <= (coalesce({{ asked('end_date', "DateTime('UTC')") }}, toDateTime(4294967295, 'UTC')) as to_time)
    and ends <= toInt64(to_time)
    and (within_is_stale or within_starts < from_time or within_ends > toInt64(to_time))
{%- endmacro %}
