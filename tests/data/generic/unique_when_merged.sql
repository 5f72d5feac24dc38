{% test unique_when_merged(model, column_name) %}
{#- unique, on a table whose older rows wait to be replaced. -#}
    select
        {{ column_name }},
        count() as rows
    from {{ model }} final
    group by {{ column_name }}
    having rows > 1
{% endtest %}
