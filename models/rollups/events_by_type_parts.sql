{{ config(materialized='view') }}

{{ events_by_type_parts(ref('events_by_type_periods')) }}
