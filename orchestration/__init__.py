"""Dagster: files into ClickHouse, models built on them, checks on both."""
