{{ rollup_of_counts(events_by_type_parts, 'counts', ['event_type', 'app_version'], 'event_count') }}
