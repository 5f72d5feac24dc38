{% macro property_pairs(properties) %}
{#-
    The (key, value) pairs that a `properties` text holds, as Array(Tuple(String, String)).

    {"key": "screen", "value": "home"}      (screen, home): the tutorial's shape
    {"screen": "product", "value": 834}     (screen, product), (value, 834): any other object, a pair for each member
    {"a": {"b": [1, 2], "c": null}}         (a.b, [1,2]), (a.c, ''): nested by dotted path, arrays as JSON, null as empty
    anything that holds no object           none

    A pair that stands there twice, by a member of the same name or path, is one: events are counted, not members.

    Objects nested more than 32 deep stay JSON text.
-#}
arrayDistinct(
    arrayMap(
        member -> (
            member.1,
            {#- The text of a JSON value: strings without their quotes, null as empty, everything else as it is written. #}
            multiIf(startsWith(member.2, '"'), JSONExtractString(member.2), member.2 = 'null', '', member.2)
        ),
        if(
            JSONLength({{ properties }}) = 2
            and JSONType({{ properties }}, 'key') = 'String'
            and JSONHas({{ properties }}, 'value') and JSONType({{ properties }}, 'value') not in ('Object', 'Array'),
            [(JSONExtractString({{ properties }}, 'key'), JSONExtractRaw({{ properties }}, 'value'))],
            arrayFold(
                (found, depth) -> arrayFlatten(
                    arrayMap(
                        member -> if(
                            startsWith(member.2, '{') and member.2 != '{}',
                            arrayMap(
                                inner -> (concat(member.1, '.', inner.1), inner.2),
                                JSONExtractKeysAndValuesRaw(member.2)
                            ),
                            [member]
                        ),
                        found
                    )
                ),
                range(least(32, toUInt64(greatest(1, countSubstrings({{ properties }}, '{')) - 1))),
                JSONExtractKeysAndValuesRaw({{ properties }})
            )
        )
    )
)
{%- endmacro %}
