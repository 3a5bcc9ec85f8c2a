"""Records as parquet tables."""

import sys

import pandas as pd
import pytest
from fake_run import FOUR, build

from encbench.cli import main
from encbench.errors import EncbenchError, MissingLibraryError
from encbench.parquet import require_parquet, write_tables
from encbench.records import find_records, read_items, read_record

pytest.importorskip("pyarrow", reason="pyarrow is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return build(tmp_path_factory.mktemp("parquet") / "run", FOUR[:2], n=20, gallery=False)


def test_every_score_is_a_row_with_all_digits(run):
    paths = write_tables(run)
    table = pd.read_parquet(run / "parquet" / "scores.parquet")
    assert paths[0].name == "scores.parquet"
    records = [read_record(path) for path in find_records(run)]
    assert len(table) == sum(len(record.scores) for record in records)
    keys = ["spec", "variant", "probe", "score"]
    values = {tuple(row[keys]): row["value"] for _, row in table.iterrows()}
    for record in records:
        for name, score in record.scores.items():
            key = (record.card.spec, record.variant, record.probe.name, name)
            assert values[key] == score.value


def test_items_of_a_probe_are_one_table(run):
    write_tables(run)
    table = pd.read_parquet(run / "parquet" / "items-retrieval.parquet")
    found = [(path, read_record(path)) for path in find_records(run)]
    found = [(path, record) for path, record in found if record.probe.name == "retrieval"]
    assert len(table) == sum(len(read_items(path, record)) for path, record in found)
    path, record = found[0]
    one = table[(table.spec == record.card.spec) & (table.variant == record.variant)]
    items = read_items(path, record)
    assert list(one["item"]) == list(items["item"])
    for column in items.select_dtypes("number"):
        assert list(one[column].dropna()) == list(items[column].dropna())


def test_a_missing_library_is_told_before_the_work(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingLibraryError, match=r"encbench\[data\]"):
        require_parquet()
    with pytest.raises(SystemExit) as caught:
        main(["run", "--parquet", "--encoders", "st:none", "--out", str(tmp_path / "out")])
    assert caught.value.code
    assert "encbench[data]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_one_line(tmp_path):
    with pytest.raises(EncbenchError, match="no records under"):
        write_tables(tmp_path)
