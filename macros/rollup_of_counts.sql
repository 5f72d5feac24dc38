{% macro rollup_of_counts(parts, result, dimensions, count) %}
{#-
    The model of a rollup that counts: adds the parts within stale periods up to those periods, a row each, with an array
    `result` of (dimensions…, count). Hours are added up from events, days from hours, months from days.
-#}
{%- set sql_now = sql_hash(this.identifier, parts()) %}
with
    stale_periods as ({{ stale_periods(this if is_incremental(), 3, sql_now) }}),

    parts_added_up as
    (
        select
            within,
            {{ dimensions | join(', ') }},
            sum({{ count }}) as {{ count }}
        from ({{ parts(this if is_incremental()) }})
        where within_is_stale
        group by within, {{ dimensions | join(', ') }}
    ),

    periods_added_up as
    (
        select
            period,
            {{ dimensions | join(', ') }},
            sum({{ count }}) as {{ count }}
        from parts_added_up
        array join arraySlice([{{ periods_around('within', 3) }}], toSecond(within) + 1) as period
        group by period, {{ dimensions | join(', ') }}
    ),

    periods_rolled_up as
    (
        select
            period,
            {{ as_declared('groupArray((' ~ dimensions | join(', ') ~ ', ' ~ count ~ '))', result) }} as {{ result }}
        from periods_added_up
        group by period
    )

select
    {{ period_around('period', 3) }} as within,
    period,
    rows_now as input_rows,
    fingerprint_now as input_fingerprint,
    {{ result }},
    {{ sql_now }}::UInt64 as built_by,
    now64(3, 'UTC') as built_at
from stale_periods
left join periods_rolled_up using (period)
{% endmacro %}

{% macro as_declared(expression, column) -%}
{#- Of the type that the model's YAML declares for the column. A unit test knows no columns, and compares without. -#}
{%- if column in model.columns -%}
cast({{ expression }}, '{{ model.columns[column].data_type }}')
{%- else -%}
{{ expression }}
{%- endif -%}
{%- endmacro %}
