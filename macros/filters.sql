{% macro requested(parameter) -%}
{#- The value that a filter was asked for; null, which is not filtered, when absent or `all`. -#}
nullIf({{ '{' ~ parameter ~ ':Nullable(String)}' }}, 'all')
{%- endmacro %}

{% macro matches(column) -%}
{#- True for the rows that a filter lets through; ClickHouse folds it away when the parameter is absent. -#}
({{ requested(column) }} is null or {{ column }} = {{ requested(column) }})
{%- endmacro %}
