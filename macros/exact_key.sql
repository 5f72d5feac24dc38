{% macro exact_key(column) %}
{#- What uniqExact itself keeps of a String: 128 bits, a quarter of the memory of the text and as exact as count(distinct). -#}
reinterpretAsUInt128(sipHash128({{ column }}))
{%- endmacro %}
