"""Quarantined rows as the lines that landing would take."""

from __future__ import annotations

from warehouse.conditions import COLUMNS
from warehouse.schema import checked
from warehouse.settings import Settings


def quarantined_lines(settings: Settings, where: str = "true") -> str:
    """The rows of ``app_events_quarantine`` with the columns of ``landing``, ``raw`` always filled: a query.

    The line is the one that came, unless the row's ten columns say something else than it does: then it is made of
    them. They do where a row came as CSV, and where someone has corrected it.

    Args:
        where: SQL over the columns of the table.
    """
    types = ", ".join(f"{name} String" for name in COLUMNS)
    rows = f"""(
        select
            quarantined.raw as line,
            toJSONString(cast(({", ".join(COLUMNS)}), 'Tuple({types})')) as raw,
            line_number,
            c__import_id as import_id,
            source
        from {settings.database}.app_events_quarantine as quarantined
        where {where}
    )"""
    return f"""(
        select
            if(toJSONString(event) = came.raw, came.line, came.raw) as line,
            came.line as raw,
            line_number,
            import_id,
            source
        from ({checked(settings, rows)}) as came
    )"""
