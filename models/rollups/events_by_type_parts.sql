{{ config(materialized='view') }}

{{ events_by_type_parts(reader(ref('events_by_type_periods'))) }}
