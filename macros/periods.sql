{#-
    Periods are hours, days and months, in UTC. One time names a period of any length: its first second an hour, its
    second one a day, its third one a month. So one column and one set of values hold periods of every length, and
    toSecond(period) tells which it is: 0 an hour, 1 a day, 2 a month.

    A period is stale if and only if the content of its input differs from what its row was built from, the number of
    input rows and the sum of their content hashes, or its row was built by other SQL. No clock and no look-back window
    takes part, so late events, deletes, crashes, repeated runs and edited models need no special case. See
    docs/exactness.md.

    Every function in an endpoint costs it 25 to 50 us of planning, twice: that is why names are this short to make.
-#}

{% macro day_of(time) -%}
toStartOfDay({{ time }}) + 1
{%- endmacro %}

{% macro month_of(time) -%}
toDateTime(toStartOfMonth({{ time }}), 'UTC') + 2
{%- endmacro %}

{% macro all_time() -%}
{#- What lies around the longest periods of a rollup. It is no period: nothing is ever built of it. -#}
toDateTime(3, 'UTC')
{%- endmacro %}

{% macro periods_around(time, lengths) -%}
{#- The periods that hold a time, shortest first, for an array: those of the first two or of all three lengths. -#}
toStartOfHour({{ time }}), {{ day_of(time) }}{% if lengths == 3 %}, {{ month_of(time) }}{% endif %}
{%- endmacro %}

{% macro period_around(period, lengths) -%}
{#- The next longer period that holds a period, or all_time(). -#}
[{{ day_of(period) }}, {% if lengths == 3 %}{{ month_of(period) }}, {% endif %}{{ all_time() }}][toSecond({{ period }}) + 1]
{%- endmacro %}

{% macro stale_periods(built, lengths, sql_now) %}
    {#-
        One row per stale period: what app_events holds of it now, and what its row in the relation `built` was built from;
        no rows when other SQL built it.
    -#}
    select
        period,
        sum(rows_now) as rows_now,
        sum(fingerprint_now) as fingerprint_now,
        sum(rows_built) as rows_built,
        sum(fingerprint_built) as fingerprint_built
    from
    (
        select
            period,
            input_rows as rows_now,
            input_fingerprint as fingerprint_now,
            0 as rows_built,
            0 as fingerprint_built
        from
        (
            {#- Must be grouped by toStartOfHour(event_time): then the projection content_by_hour answers it. #}
            select
                toStartOfHour(event_time) as hour,
                count() as input_rows,
                sum(content_hash) as input_fingerprint
            from {{ source('landing', 'app_events') }}
            group by hour
        )
        array join [{{ periods_around('hour', lengths) }}] as period
        {% if built %}
        union all

        select
            period,
            0 as rows_now,
            0 as fingerprint_now,
            input_rows * (built_by = {{ sql_now }}) as rows_built,
            input_fingerprint as fingerprint_built
        from {{ built }} final
        {% endif %}
    )
    group by period
    having (rows_now, fingerprint_now) != (rows_built, fingerprint_built)
{% endmacro %}

{% macro sql_hash(rollup, parts_of_events) -%}
{#-
    What a row's built_by is when the SQL that built it is that of now: a hash of the parts of a rollup that are events alone,
    and of the rollup's model. Spaces and Jinja's comments in the parts do not count.
-#}
{%- set model_node = graph.get('nodes', {}).get('model.' ~ project_name ~ '.' ~ rollup, {}) -%}
{{ local_md5((parts_of_events ~ ' ' ~ model_node.get('raw_code', '')).split() | join(' '))[:15] | int(base=16) }}
{%- endmacro %}
