"""Every tracked records file makes the tables that stand in `tables/`, character for character."""

from pathlib import Path

import pytest

from keepfrac.reporting import stages, tables
from keepfrac.reporting.build import of_records
from keepfrac.reporting.records import read_records

RECORDS = Path(__file__).parents[3] / "multirun" / "records"
TABLES = Path(__file__).parent / "tables"
NAMES = sorted(path.stem for path in TABLES.glob("*.csv"))


@pytest.mark.parametrize("name", NAMES)
def test_the_markdown_is_as_it_was(name):
    assert of_records(RECORDS / f"{name}.csv").table() == (TABLES / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_the_csv_is_as_it_was(name):
    written = tables.table_csv(of_records(RECORDS / f"{name}.csv").arms)
    assert written == (TABLES / f"{name}.csv").read_text(encoding="utf-8")


def test_the_table_of_stages_is_as_it_was():
    found = f"gaiic, one_minus_mlogloss\n\n{stages.table(read_records(RECORDS / 'gaiic.csv'))}\n"
    assert found == (TABLES / "gaiic.stages.md").read_text(encoding="utf-8")
