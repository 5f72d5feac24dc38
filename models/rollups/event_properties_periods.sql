{{
    rollup_of_counts(
        event_properties_parts, 'pairs', ['event_type', 'property_key', 'property_value'], 'pair_count'
    )
}}
