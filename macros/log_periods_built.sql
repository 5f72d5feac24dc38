{% macro log_periods_built() %}
{#-
    Says how many periods of this rollup the run built anew, for its post-hook: none when nothing had changed.
    The time since the run began is measured by dbt's clock and subtracted from ClickHouse's: the two may differ.
-#}
    {%- if execute and model.config.materialized == 'incremental' -%}
        {%- set seconds = (modules.datetime.datetime.now(modules.pytz.utc) - run_started_at).total_seconds() -%}
        {%- set counted = run_query(
            "select countIf(built_at >= now64(3, 'UTC') - toIntervalMillisecond(" ~ (seconds * 1000) | round(0, 'ceil') | int
            ~ ")), count() from " ~ this ~ " final"
        ) -%}
        {%- set built, periods = counted.rows[0] -%}
        {%- do log(this.identifier ~ ": built " ~ built ~ " of " ~ periods ~ " periods", info=true) -%}
    {%- endif -%}
{% endmacro %}
