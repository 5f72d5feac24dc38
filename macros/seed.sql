{#-
    How a seed is loaded, in place of dbt's own way, which empties the table first: until the rows are back, endpoints would
    answer as if the seed listed nothing, and for longer when the run is killed or the rows cannot be inserted. A new table
    is filled before anyone sees it, under a name that no run at the same time has.
-#}
{% materialization seed, adapter='clickhouse' %}
    {%- set target_relation = this.incorporate(type='table') -%}
    {%- set existing_relation = load_cached_relation(this) -%}
    {%- set prefix = this.identifier ~ '__dbt_seed_' -%}
    {%- set filled_relation = target_relation.incorporate(path={'identifier': prefix ~ invocation_id | replace('-', '')}) -%}
    {%- set seed = load_agate_table() -%}
    {%- do store_result('agate_table', response='OK', agate_table=seed) -%}
    {%- set columns = [] -%}
    {%- for name in seed.column_names -%}
        {%- do columns.append(
            adapter.quote_seed_column(name, config.get('quote_columns')) ~ ' '
            ~ config.get('column_types', {}).get(name, adapter.convert_type(seed, loop.index0))
        ) -%}
    {%- endfor -%}

    {#- Left by a run that was killed, not filled by one that is going on. -#}
    {%- set left = run_query(
        "select name from system.tables where database = '" ~ this.schema ~ "' and startsWith(name, '" ~ prefix
        ~ "') and metadata_modification_time < now() - interval 1 hour"
    ) -%}
    {%- for row in left.rows -%}
        {%- do adapter.drop_relation(target_relation.incorporate(path={'identifier': row[0]})) -%}
    {%- endfor -%}
    {{ run_hooks(pre_hooks) }}
    {% call statement('create') %}
        create table {{ filled_relation }} ({{ columns | join(', ') }}) {{ engine_clause() }} {{ order_cols(label='order by') }}
    {% endcall %}
    {%- set rows = adapter.get_csv_data(seed) -%}
    {% if rows %}
        {% do adapter.add_query('insert into ' ~ filled_relation ~ ' format CSV\n' ~ rows, bindings=seed, abridge_sql_log=True) %}
    {% endif %}
    {% do put_in_place(filled_relation, target_relation, existing_relation) %}
    {% call noop_statement('main', 'INSERT ' ~ seed.rows | length, 'INSERT', seed.rows | length) %}{% endcall %}
    {% do persist_docs(target_relation, model) %}
    {{ run_hooks(post_hooks) }}

    {{ return({'relations': [target_relation]}) }}
{% endmaterialization %}
