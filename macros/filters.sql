{% macro asked(parameter, type='String') -%}
{#- The value of an optional parameter; null when it is absent. -#}
{{ '{' ~ parameter ~ ':Nullable(' ~ type ~ ')}' }}
{%- endmacro %}

{% macro requested(parameter) -%}
{#- The value that a filter was asked for; null, which is not filtered, when absent or `all`. -#}
nullIf({{ asked(parameter) }}, 'all')
{%- endmacro %}

{% macro matches(column) -%}
{#- True for the rows that a filter lets through; ClickHouse folds it away when the parameter is absent. -#}
({{ requested(column) }} is null or {{ column }} = {{ requested(column) }})
{%- endmacro %}
