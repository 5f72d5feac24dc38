"""The dbt project as an analytics engineer finds it: documented, tested, and usable from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from conftest import Dbt, copy_of_the_project

from warehouse.settings import Settings


@pytest.fixture(scope="module")
def catalog(dbt: Dbt) -> dict[str, Any]:
    """What `dbt docs generate` finds in the database, beside the manifest."""
    dbt("build")
    dbt("docs", "generate")
    target = Path(dbt.environ["DBT_TARGET_PATH"])
    return {name: json.loads((target / f"{name}.json").read_text()) for name in ("catalog", "manifest")}


def models(catalog: dict[str, Any]) -> dict[str, dict[str, Any]]:
    nodes = catalog["manifest"]["nodes"].values()
    return {node["name"]: node for node in nodes if node["resource_type"] in ("model", "seed")}


def test_every_model_and_column_is_described(catalog: dict[str, Any]) -> None:
    undescribed = [name for name, model in models(catalog).items() if not model["description"]]
    for model in models(catalog).values():
        found = catalog["catalog"]["nodes"].get(model["unique_id"], {"columns": {}})["columns"]
        columns = model["columns"]
        undescribed += [f"{model['name']}.{column}" for column in found if column not in columns]
        undescribed += [f"{model['name']}.{name}" for name, column in columns.items() if not column["description"]]
    assert undescribed == []


def test_every_rollup_has_a_key_test_and_a_contract(catalog: dict[str, Any]) -> None:
    tests = [node for node in catalog["manifest"]["nodes"].values() if node["resource_type"] == "test"]
    keyed = {test["attached_node"].split(".")[-1] for test in tests if "unique" in test["name"]}
    rollups = {name for name, model in models(catalog).items() if model["config"]["materialized"] == "incremental"}
    assert len(rollups) == 3
    assert rollups <= keyed
    assert all(models(catalog)[name]["config"]["contract"]["enforced"] for name in rollups)


def test_a_model_reads_sources_through_staging_or_the_shared_macros_only(catalog: dict[str, Any]) -> None:
    """Endpoints and rollups name no table of the landing by themselves: what counts as an event is decided once."""
    for model in models(catalog).values():
        assert "source(" not in model.get("raw_code", ""), model["name"]


@pytest.mark.parametrize(
    ("words", "others", "reason"),
    [
        ("data_type: UInt64", "data_type: String", "its YAML declares"),
        (
            "description: Only events of this version of the app; `all` means not filtered.",
            "example: x",
            "app_version has",
        ),
    ],
)
def test_an_endpoint_that_differs_from_its_yaml_never_goes_live(
    dbt: Dbt, client: Client, settings: Settings, tmp_path: Path, words: str, others: str, reason: str
) -> None:
    views = "select name, uuid from system.tables where engine = 'View' order by name"
    dbt("run", "--select", "events_by_type")
    before = client.query(views).result_rows
    project = copy_of_the_project(tmp_path)
    yaml = project / "models/endpoints/_endpoints__models.yml"
    assert words in yaml.read_text()
    yaml.write_text(yaml.read_text().replace(words, others, 1))
    with pytest.raises(AssertionError, match=reason):
        dbt("run", "--select", "events_by_type", project=project)
    assert client.query(views).result_rows == before


def test_freshness_is_told(dbt: Dbt) -> None:
    assert "freshness of landing.app_events" in dbt("source", "freshness", "--select", "source:landing.app_events")


def test_a_rollup_whose_tuples_have_another_member_is_built_in_full(
    dbt: Dbt, client: Client, settings: Settings, tmp_path: Path
) -> None:
    """A dimension more changes the type of a column and no column's name."""
    rollup = ["--select", "events_by_type_periods", "events_by_type_parts"]
    edits = [
        ("models/rollups/_rollups__models.yml", "`event_count`", "`os_version` LowCardinality(String), `event_count`"),
        ("models/rollups/events_by_type_periods.sql", "'app_version'", "'app_version', 'os_version'"),
        ("macros/events_by_type_parts.sql", "'app_version',", "'app_version', 'os_version',"),
        ("macros/events_by_type_parts.sql", "        app_version,\n", "        app_version,\n        os_version,\n"),
    ]
    project = copy_of_the_project(tmp_path)
    for file, words, others in edits:
        assert words in (project / file).read_text()
        (project / file).write_text((project / file).read_text().replace(words, others))

    def members_and_table() -> tuple[str, str]:
        found = client.query(
            "select c.type, toString(t.uuid) from system.columns as c "
            "join system.tables as t on t.database = c.database and t.name = c.table "
            "where c.database = {database:String} and c.table = 'events_by_type_periods' and c.name = 'counts'",
            parameters={"database": settings.database},
        )
        return found.first_row

    dbt("run", *rollup)
    try:
        dbt("run", *rollup, project=project)
        members, table = members_and_table()
        assert "os_version" in members
        dbt("run", *rollup, project=project)
        assert members_and_table() == (members, table), "built in full once"
    finally:
        dbt("run", *rollup)
    members, table = members_and_table()
    assert "os_version" not in members
    dbt("run", *rollup)
    assert members_and_table() == (members, table)
