{{ config(materialized='view') }}

{{ event_properties_parts(ref('event_properties_periods')) }}
