{{ config(materialized='view') }}

{{ sessions_parts(ref('sessions_periods')) }}
