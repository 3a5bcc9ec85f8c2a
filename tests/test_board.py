"""The board: runs merge by their pins or not at all; equal encoders share a rank."""

import json
import shutil

import pytest
from fake_run import FOUR, build

from encbench.board import build_board, merge_runs
from encbench.cli import main
from encbench.errors import DataError, EncbenchError
from encbench.pipeline import rank
from encbench.records import find_records


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two people's runs of two encoders each, and a run that holds all their records."""
    home = tmp_path_factory.mktemp("runs")
    parts = [build(home / "alice", FOUR[:2]), build(home / "bob", FOUR[2:])]
    for part in reversed(parts):  # of the controls, which both measured, alice's stay
        shutil.copytree(part / "records", home / "all" / "records", dirs_exist_ok=True)
    return parts, home / "all"


def test_merged_runs_rank_as_one_run_does(runs):
    parts, whole = runs
    merged, alone = merge_runs(parts), rank(whole)
    assert [(r.ranked.spec, r.ranked.value) for r in merged.rows] == [
        (row.spec, row.value) for row in alone.order
    ]
    assert {row.ranked.spec: row.run for row in merged.rows}[FOUR[3].spec] == "bob"
    again = merge_runs([*parts, parts[0]])  # what was measured twice counts once
    assert [row.ranked for row in again.rows] == [row.ranked for row in merged.rows]


def test_ranks_are_shared_by_those_that_cannot_be_told_apart(runs):
    merged = merge_runs(runs[0])
    ranks = {row.ranked.name: row.rank for row in merged.rows if not row.ranked.control}
    assert ranks == {"CLIP ViT-L/14": 1, "MiniLM-L6": 1, "Gemma-2-2b-it": 3, "T5 v1.1 XXL": 4}
    assert {row.rank for row in merged.rows if row.ranked.control} == {None}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda r: r["probe"].update(dataset="coco@other"), "data of the probe retrieval"),
        (lambda r: r["probe"].update(version=99), "version of the probe retrieval"),
        (lambda r: r.update(seed=5), "seed of the probe retrieval"),
        (lambda r: r["config"].update(queries=5), "queries of the probe retrieval"),
        (lambda r: r["config"].update(limit=5), "limit of the probe retrieval"),
    ],
)
def test_what_differs_is_named_and_nothing_is_merged(runs, tmp_path, change, named):
    (alice, _), _ = runs
    other = build(tmp_path / "carol", FOUR[2:])
    for path in find_records(other):
        record = json.loads(path.read_text())
        if record["probe"]["name"] == "retrieval":
            change(record)
            path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=f"alice and carol cannot be on one board: {named} is"):
        merge_runs([alice, other])


def test_a_folder_without_records_is_one_line(tmp_path):
    with pytest.raises(EncbenchError, match="no records under"):
        merge_runs([tmp_path])


def test_the_page_needs_nothing_else_and_links_each_report(runs, tmp_path, capsys):
    parts, _ = runs
    (parts[0] / "report").mkdir(exist_ok=True)
    (parts[0] / "report" / "index.html").write_text("the report of alice")
    with pytest.raises(SystemExit) as done:
        main(["board", *map(str, parts), "--out", str(tmp_path / "site")])
    assert done.value.code in (0, None)
    assert "13 encoders from 2 runs" in " ".join(capsys.readouterr().out.split())
    page = (tmp_path / "site" / "index.html").read_text()
    assert (tmp_path / "site" / "reports" / "alice.html").read_text() == "the report of alice"
    assert 'href="reports/alice.html"' in page
    assert "no report yet: run encbench report" in page  # bob's
    assert 'href="https://huggingface.co/google/t5-v1_1-xxl"' in page
    for loads in ("<img", '<link rel="stylesheet', 'src="http', "url(http", "@import"):
        assert loads not in page
    order = json.loads((tmp_path / "site" / "board.json").read_text())["order"]
    assert page.count("<tr") == 1 + len(order) == 14


def test_names_are_text_on_the_page(tmp_path):
    import dataclasses

    odd = dataclasses.replace(FOUR[0], name="<script>alert(1)</script>")
    run = build(tmp_path / "odd", [odd, FOUR[1]])
    page = build_board(merge_runs([run]), tmp_path / "site").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
