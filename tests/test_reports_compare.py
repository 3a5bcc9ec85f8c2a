"""Two runs on one page."""

import csv
import re
from dataclasses import replace

import pytest
from fake_run import FOUR, Fake, build

from encbench.cli import main
from encbench.errors import RecordError
from encbench.reports import compare
from encbench.reports.build import build_report
from encbench.reports.load import load_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs with three candidates in common, in another order."""
    folder = tmp_path_factory.mktemp("compare")
    swapped = (
        Fake(FOUR[0].spec, FOUR[0].name, 0.3, 123_650_304),
        *FOUR[1:3],
        Fake("st:other", "Another encoder", 0.5, 1000),
    )
    first = build(folder / "one" / "run", FOUR, n=30, gallery=False, prompts=False)
    second = build(folder / "two" / "run", swapped, n=30, gallery=False)
    return first, second


@pytest.fixture(scope="module")
def compared(runs):
    first, second = map(load_run, runs)
    return compare.Comparison(first, second, compare.name_runs(*runs))


def test_runs_of_the_same_name_are_told_apart(runs, tmp_path):
    assert compare.name_runs(*runs) == ("one/run", "two/run")
    assert compare.name_runs(tmp_path / "a", tmp_path / "b") == ("a", "b")


def test_the_headline_says_what_each_run_advises(runs, compared):
    assert compared.headline.startswith(f"one/run advises {FOUR[0].name}; two/run advises ")
    same = compare.Comparison(compared.first, compared.first, ("a", "b"))
    assert same.headline == f"Both runs advise {FOUR[0].name}."
    assert "correlation of their scores is 1.00; 0 changed places" in same.agreement


def test_places_count_the_shared_candidates_only(compared):
    assert [a.name for a, _ in compared.shared] == [fake.name for fake in FOUR[:3]]
    assert compared.places == {FOUR[0].spec: (1, 3), FOUR[1].spec: (2, 1), FOUR[2].spec: (3, 2)}
    assert compared.only(compared.first) == [FOUR[3].name]
    assert compared.only(compared.second) == ["Another encoder"]
    assert compared.agreement.startswith("3 candidates in both runs")
    assert compared.agreement.endswith("3 changed places.")
    table = compare.rank_table(compared)
    moved = {row.cells[0].text: row.cells[5].text for row in table.rows}
    assert moved == {FOUR[0].name: "−2", FOUR[1].name: "+1", FOUR[2].name: "+1"}


def test_differences_of_values_are_shown_for_the_same_data_only(runs, compared, tmp_path):
    assert compare.rank_table(compared).head[-1] == "Second − first"
    other = load_run(runs[1])
    other.probes["retrieval"] = replace(other.probes["retrieval"], dataset="other data")
    apart = compare.Comparison(compared.first, other, ("a", "b"))
    assert not apart.comparable("retrieval")
    assert compare.rank_table(apart).head[-1] == "Places moved"
    assert "Second − first" not in compare.score_table(apart, "retrieval").head


def test_what_differs_is_listed_and_nothing_else(compared):
    table = compare.difference_table(compared)
    assert table is not None
    facts = {row.cells[0].text: [cell.text for cell in row.cells[1:]] for row in table.rows}
    assert facts["Candidates of one run only"] == [FOUR[3].name, "Another encoder"]
    assert "Seed" not in facts
    same = compare.Comparison(compared.first, compared.first, ("a", "b"))
    assert compare.difference_table(same) is None


def test_the_page_shows_both_runs_and_their_figures_in_pairs(runs):
    build_report(runs[0])
    page = build_report(*runs[:1], beside=runs[1])
    assert page == runs[0] / "compare-run" / "index.html"
    source = page.read_text("utf-8")
    ids = re.findall(r'\bid="([^"]+)"', source)
    assert len(ids) == len(set(ids))
    assert {"both-ranks", "first-ranking", "second-ranking", "second-ablation"} <= set(ids)
    assert "first-ablation" not in ids
    assert "This run has no such figure." in source
    assert 'href="../report/index.html"' in source  # the first has a report, the second has not
    assert source.count("Its report") == 1
    links = set(re.findall(r'href="#([^"]+)"', source)) - set(
        re.findall(r'xlink:href="#([^"]+)', source)
    )
    assert links <= set(ids)
    rows = list(csv.DictReader((page.parent / "comparison.csv").open(encoding="utf-8")))
    assert [row["spec"] for row in rows] == [fake.spec for fake in FOUR[:3]]
    assert [row["rank_1"] for row in rows] == ["1", "2", "3"]


def test_runs_without_a_common_candidate_are_shown_all_the_same(runs, tmp_path):
    other = build(tmp_path / "other", (Fake("st:x", "X", 0.5),), n=20, gallery=False, prompts=False)
    source = build_report(runs[0], tmp_path / "out", beside=other).read_text("utf-8")
    assert "The runs have no candidate in common." in source
    assert "needs three" in source


def test_the_command_takes_one_run_or_two(runs, tmp_path, capsys):
    def call(*words):
        with pytest.raises(SystemExit) as caught:
            main(["report", *map(str, words)])
        return caught.value.code or 0, *capsys.readouterr()

    code, out, _ = call(*runs, "--to", tmp_path / "both")
    assert (code, out) == (0, f"comparison: {tmp_path / 'both' / 'index.html'}\n")
    assert (tmp_path / "both" / "index.html").is_file()
    code, _, error = call(*runs, runs[0])
    assert code != 0
    assert "encbench board" in error


def test_a_damaged_second_run_is_named(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match=r"empty holds no prediction\.json"):
        build_report(runs[0], beside=tmp_path / "empty")
