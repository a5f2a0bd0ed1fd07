"""Every tracked records file makes the tables that stand in `tables/`, character for character."""

import shutil
from pathlib import Path

import pytest

from keepfrac.reporting import stages, tables
from keepfrac.reporting.build import of_records
from keepfrac.reporting.records import read_records
from keepfrac.reporting.results import results, write

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


def test_the_page_of_results_has_all_of_them_as_they_are():
    text = (RECORDS.parent / "RESULTS.md").read_text(encoding="utf-8")
    assert results(text, RECORDS) == text
    for name in NAMES:
        kind = "stages" if name == "gaiic" else "table"
        assert f"<!-- {kind}:{name} -->\n" in text and f"<!-- /{kind}:{name} -->\n" in text


def test_a_stale_table_is_made_anew_and_all_else_stays(tmp_path):
    page = tmp_path / "page.md"
    (tmp_path / "records").mkdir()
    shutil.copy(RECORDS / "taylor_sst2.csv", tmp_path / "records")
    page.write_text("a\n<!-- table:taylor_sst2 -->\nold\n<!-- /table:taylor_sst2 -->\nb\n", encoding="utf-8")
    assert write(page) and not write(page)
    table = (TABLES / "taylor_sst2.md").read_text(encoding="utf-8").strip()
    marked = f"a\n<!-- table:taylor_sst2 -->\n{table}\n<!-- /table:taylor_sst2 -->\nb\n"
    assert page.read_text(encoding="utf-8") == marked
