"""What the assets are given."""

from dagster import Definitions, definitions
from dagster_dbt import DbtCliResource

from orchestration.defs.dbt import dbt_project


@definitions
def defs() -> Definitions:
    return Definitions(resources={"dbt": DbtCliResource(project_dir=dbt_project)})
