{#-
    An endpoint: a parameterised view that the API serves. Its comment carries the words of the model's YAML, so the
    deployed database is the catalogue; its columns must be those of the YAML, or it never goes live.

    One that reads rollups has a twin, `…__from_events`, which reads none: the API asks it while a rollup is not there.
-#}
{% materialization endpoint, adapter='clickhouse' %}
    {%- set target_relation = this.incorporate(type='view') -%}
    {#- Where the API does not see it. -#}
    {%- set draft = target_relation.incorporate(path={'schema': target.schema, 'identifier': this.identifier ~ '__draft'}) -%}
    {%- set twin = target_relation.incorporate(path={'identifier': this.identifier ~ '__from_events'}) -%}
    {%- set twin_sql = sql_from_events(sql) -%}
    {%- set documentation = {
        'description': model.description,
        'parameters': model.config.meta.get('parameters', {}),
        'columns': endpoint_columns(),
    } -%}

    {{ run_hooks(pre_hooks) }}
    {% call statement('draft') -%}
        create or replace view {{ draft }} as {{ sql }}
    {%- endcall %}
    {%- set fault = endpoint_fault(draft) -%}
    {% call statement('drop_draft') -%}
        drop view {{ draft }}
    {%- endcall %}
    {%- if fault -%}
        {%- do exceptions.raise_compiler_error("Endpoint " ~ model.name ~ fault) -%}
    {%- endif %}
    {% call statement('twin') -%}
        {%- if twin_sql %}
        create or replace view {{ twin }}
        definer = current_user sql security definer
        as
        {{ twin_sql }}
        {%- else %}
        drop view if exists {{ twin }}
        {%- endif %}
    {%- endcall %}
    {% call statement('main') -%}
        create or replace view {{ target_relation }}
        definer = current_user sql security definer
        as
        {{ sql }}
        comment {{ string_literal(tojson(documentation)) }}
    {%- endcall %}
    {{ run_hooks(post_hooks) }}

    {{ return({'relations': [target_relation]}) }}
{% endmaterialization %}

{% macro sql_from_events(sql) %}
{#- An endpoint's SQL over parts that are events alone, made by the macros of the parts' names; nothing when it reads no parts. -#}
    {%- set found = namespace(sql=sql | replace(asked_for(), asked_for(of_events=true)), parts=[]) -%}
    {%- for node in model.depends_on.nodes -%}
        {%- set name = node.split('.')[-1] -%}
        {%- if name.endswith('_parts') and name in context -%}
            {%- set found.sql = found.sql | replace(ref(name) | string, name) -%}
            {%- do found.parts.append(name ~ " as (" ~ context[name](none) ~ ")") -%}
        {%- endif -%}
    {%- endfor -%}
    {#- On a line of its own, the bracket is in no comment that ends the SQL. -#}
    {{ return("with " ~ found.parts | join(", ") ~ " select * from (" ~ found.sql ~ "\n)" if found.parts else "") }}
{% endmacro %}

{% macro endpoint_columns() %}
    {%- set columns = {} -%}
    {%- for name, column in model.columns.items() -%}
        {%- do columns.update({name: {'type': column.data_type, 'description': column.description}}) -%}
    {%- endfor -%}
    {{ return(columns) }}
{% endmacro %}

{% macro string_literal(text) -%}
'{{ text | replace("\\", "\\\\") | replace("'", "\\'") }}'
{%- endmacro %}

{% macro endpoint_fault(relation) %}
{#- What is wrong when a parameter lacks its words, or when the answer's columns are not those of the YAML; else nothing. -#}
    {%- set parameters = run_query(
        "select p.name, p.type from system.tables array join parameterized_view_parameters as p "
        ~ "where database = '" ~ relation.schema ~ "' and name = '" ~ relation.identifier ~ "'"
    ) -%}
    {%- set documented = model.config.meta.get('parameters', {}) -%}
    {%- set arguments = [] -%}
    {%- for name, type in parameters.rows -%}
        {%- if not documented.get(name, {}).get('description') -%}
            {{ return(
                ": parameter " ~ name ~ " has no description; add it under config.meta.parameters in the YAML."
            ) }}
        {%- endif -%}
        {%- set any_value = "NULL" if type.startswith("Nullable") else "'[]'" if type.startswith("Array")
            else "'1970-01-01'" if "Date" in type else "'0'" -%}
        {%- do arguments.append(name ~ " = " ~ any_value) -%}
    {%- endfor -%}
    {%- set answer = run_query("describe table " ~ relation ~ "(" ~ arguments | join(", ") ~ ")") -%}
    {%- set found = {} -%}
    {%- for row in answer.rows -%}
        {%- do found.update({row[0]: row[1]}) -%}
    {%- endfor -%}
    {%- set declared = {} -%}
    {%- for name, column in endpoint_columns().items() -%}
        {%- do declared.update({name: column.type}) -%}
    {%- endfor -%}
    {{ return(" answers with the columns " ~ found ~ ", its YAML declares " ~ declared ~ "." if found != declared else "") }}
{% endmacro %}
