"""The HTTP API: events in, endpoints out; what there is to call stands in ClickHouse, not here."""
