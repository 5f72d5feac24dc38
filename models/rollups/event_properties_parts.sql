{{ config(materialized='view') }}

{{ event_properties_parts(reader(ref('event_properties_periods'))) }}
