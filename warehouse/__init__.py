"""ClickHouse and the landing folder: what orchestration and serving share."""
