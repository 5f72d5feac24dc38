{{ config(materialized='view') }}

{{ sessions_parts(reader(ref('sessions_periods'))) }}
