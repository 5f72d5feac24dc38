{#-
    How a rollup is built, in place of the adapter's own way: rows are only ever inserted, newer ones replace older ones of
    the same period. A new table is filled before anyone sees it: with one that is seen while it is empty, a query that
    found its periods fresh a moment ago, in the table before, would miss them.
-#}
{% materialization incremental, adapter='clickhouse' %}
    {%- set target_relation = this.incorporate(type='table') -%}
    {%- set existing_relation = load_cached_relation(this) -%}
    {%- set filled_relation = make_intermediate_relation(target_relation) -%}

    {#- Left by a run that was killed. -#}
    {{ drop_relation_if_exists(load_cached_relation(filled_relation)) }}
    {{ run_hooks(pre_hooks) }}
    {% if is_incremental() %}
        {% call statement('main') %}
            {{ clickhouse__insert_into(target_relation, sql, config.get('contract').enforced) }}
        {% endcall %}
    {% else %}
        {% call statement('main') %}
            {{ get_create_table_as_sql(False, filled_relation, sql) }}
        {% endcall %}
        {% do put_in_place(filled_relation, target_relation, existing_relation) %}
    {% endif %}
    {% do persist_docs(target_relation, model) %}
    {{ run_hooks(post_hooks) }}

    {{ return({'relations': [target_relation]}) }}
{% endmaterialization %}

{% macro is_incremental() %}
{#- As dbt has it; and not when the table's columns, by name and type, are those of an earlier layout: then it is built in full. -#}
    {%- if not execute or should_full_refresh() or model.config.materialized != 'incremental' -%}
        {{ return(False) }}
    {%- endif -%}
    {%- set relation = load_cached_relation(this) -%}
    {%- if not relation or relation.type != 'table' -%}
        {{ return(False) }}
    {%- endif -%}
    {%- set declared = [] -%}
    {%- for name, column in model.columns.items() -%}
        {%- do declared.append("('" ~ name ~ "', toTypeName(defaultValueOfTypeName(" ~ string_literal(column.data_type) ~ ")))") -%}
    {%- endfor -%}
    {#- With their types, which ClickHouse writes in one way: the dimensions of a rollup are members of its tuples. -#}
    {%- set same = run_query(
        "select groupArray((name, type)) = [" ~ declared | join(", ") ~ "] from (select name, type from system.columns "
        ~ "where database = '" ~ relation.schema ~ "' and table = '" ~ relation.identifier ~ "' order by position) "
        ~ "settings print_pretty_type_names = 0"
    ) -%}
    {{ return(same.rows[0][0] == 1) }}
{% endmacro %}

{% macro put_in_place(filled_relation, target_relation, existing_relation) %}
{#- Give a table that is filled its name, at once, and drop the one that had it. -#}
    {%- if existing_relation -%}
        {%- do exchange_tables_atomic(filled_relation, target_relation) -%}
        {%- do adapter.drop_relation(filled_relation) -%}
    {%- else -%}
        {%- do adapter.rename_relation(filled_relation, target_relation) -%}
    {%- endif -%}
{% endmacro %}
