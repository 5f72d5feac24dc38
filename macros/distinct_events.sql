{% macro distinct_events(where) %}
{#-
    The events that count, one row per distinct (event_id, event_time), of those that satisfy `where`.
    Copies that differ count as one too: the one that arrived first.
    Sorted by the table's key first, so copies are found in a stream: 10 million events need 0.1 GB, a hash table 2 GB.
-#}
(
    select
        event_id,
        user_id,
        event_type,
        event_time,
        app_version,
        device_type,
        os_version,
        country,
        properties,
        session_id
    from {{ source('landing', 'app_events') }}
    where {{ where }}
    order by event_time, event_id, inserted_at, import_id, line_number
    limit 1 by event_time, event_id
)
{% endmacro %}
