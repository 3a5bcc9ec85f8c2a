"""What a report shows of things it does not know: a third party's probe, with or without a figure
of its own; and what must not travel with it: absolute folders and formulas."""

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

import fake_run
import pytest
from fake_run import FOUR

from encbench import registry
from encbench.errors import EncbenchError
from encbench.probes.retrieval import RetrievalProbe
from encbench.records import find_records, read_record, write_record
from encbench.reports import build, tables, text
from encbench.reports.build import build_report
from encbench.reports.figure_set import FigureSet, draw_figures
from encbench.reports.figures import ReportFigure, canvas, finish
from encbench.reports.load import change_texts, hide_folders, load_run
from encbench.types import EncoderCard, ProbeDisplay, ProbeSpec, Score

BARE = ProbeSpec("bare", 1, "main", "a probe that says nothing else")
WORDY = ProbeSpec(
    "wordy",
    3,
    "main",
    "a probe with words",
    display=ProbeDisplay(
        section="What the prompt says",
        scores={"main": "0: chance, 1: all of it", "other": "the other half"},
        panels={"late": ("late/100", "late/400")},
        caption="After 100 and after 400 steps.",
        chance=0.0,
        definitions={"Wordiness": "How it comes about."},
    ),
)


def entry(value: float) -> Score:
    return Score(value, 50, value - 0.1, value + 0.1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run with two probes that the report has never heard of."""
    folder = fake_run.build(
        tmp_path_factory.mktemp("seams") / "run", FOUR[:2], n=20, prompts=False, gallery=False,
        diagnostics=False, variants=False,
    )  # fmt: skip
    for path in find_records(folder):
        record = read_record(path)
        for number, probe in enumerate((BARE, WORDY)):
            names = ("main", "other", "late/100", "late/400")
            made = dataclasses.replace(
                record, key=record.key + probe.name, probe=probe, series={},
                item_scores={}, scores={name: entry(0.2 + 0.3 * number) for name in names},
                notes=[],
            )  # fmt: skip
            write_record(path.with_name(f"{probe.name}.main.json"), made)
    keys = [read_record(path).key for path in find_records(folder)]
    fake_run.change_prediction(folder, records=keys)
    return folder


def test_a_probe_without_a_figure_has_its_scores_drawn_in_its_section(run, tmp_path):
    page = build_report(run, tmp_path / "report").read_text("utf-8")
    figures = draw_figures(load_run(run))
    assert [d.name for d in figures.sections["bare"] if not isinstance(d, str)] == ["bare"]
    svg = figures.drawings["bare"].svg.decode()
    assert all(f"<!-- {name} -->" in svg for name in ("main", "other", "late/100", "late/400"))
    svg = figures.drawings["wordy"].svg.decode()
    assert all(f"<!-- {name} -->" in svg for name in ("late", "100", "400"))
    assert "<!-- other -->" not in svg
    assert '<section id="bare">' in page
    assert 'id="figure-wordy"' in page
    for words in ("After 100 and after 400 steps.", "Wordiness", "How it comes about.",
                  "bare: a probe that says nothing else", "wordy: a probe with words"):  # fmt: skip
        assert words in page
    assert (tmp_path / "report" / "figures" / "bare.png").is_file()


def test_its_table_has_the_main_score_first_and_then_those_it_names(run):
    loaded = load_run(run)
    head = tables.score_table(loaded, loaded.probes["wordy"]).head
    assert head == ("Encoder", "main", "other")
    head = tables.score_table(loaded, loaded.probes["bare"]).head
    assert head == ("Encoder", "main", "other", "late/100", "late/400")


def test_a_registered_figure_takes_the_place_of_the_generic_one(run, monkeypatch):
    def draw(run):
        with canvas(1.0) as figure:
            figure.text(0.5, 0.5, "drawn elsewhere")
            return finish(figure, "A caption.", "Words, drawn.")

    theirs = ReportFigure("A section of theirs", "Their title", draw, probes=("bare",))
    names, get = registry.names, registry.get
    monkeypatch.setattr(
        registry, "names", lambda kind: [*names(kind), *(["theirs"] if kind == "figure" else [])]
    )
    monkeypatch.setattr(
        registry,
        "get",
        lambda kind, name: theirs if (kind, name) == ("figure", "theirs") else get(kind, name),
    )
    figures = draw_figures(load_run(run))
    assert "bare" not in figures.drawings
    drawing = figures.drawings["theirs"]
    assert (drawing.title, figures.sections["A section of theirs"]) == ("Their title", [drawing])
    assert "A section of theirs" in [title for _, title, _ in figures.free]


def test_old_records_are_shown_as_their_probe_says_today(run):
    """Records of earlier versions hold no display; the installed probe's is used, if it fits."""
    loaded = load_run(run)
    assert loaded.record(FOUR[0].spec, "retrieval").probe.display == ProbeDisplay()
    assert loaded.probes["retrieval"].display == RetrievalProbe.spec.display
    newer = tuple(
        dataclasses.replace(r, probe=dataclasses.replace(r.probe, version=99))
        for r in loaded.records
    )
    probes = dataclasses.replace(loaded, records=newer).probes
    assert probes["retrieval"].display == ProbeDisplay()


def test_local_encoders_are_named_by_folder_and_content():
    cards = [
        EncoderCard("", "st", source, revision, 384, None)
        for source, revision in (
            ("/home/someone/models/mini", "0123456789abcdef" * 4),
            ("/home/someone/models/mini/deeper", "f" * 64),
            ("google/t5-v1_1-xxl", "a" * 40),
        )
    ]
    hide = hide_folders(cards)
    assert hide("st:/home/someone/models/mini?pool=max") == "st:mini@0123456789ab?pool=max"
    assert hide("st:/home/someone/models/mini/deeper") == "st:deeper@ffffffffffff"
    assert hide("control:shuffle(st:/home/someone/models/mini)") == (
        "control:shuffle(st:mini@0123456789ab)"
    )
    assert hide("/data/someone/coco") == "…/coco"
    assert hide("cannot read /data/someone/x.json: gone") == "cannot read …/x.json: gone"
    for same in (
        "t5:google/t5-v1_1-xxl",
        "https://example.org/a/b.jpg",
        "and/or",
        "a / b",
        "./x/y",
    ):
        assert hide(same) == same
    config = {"coco": "/data/someone/coco", "ks": [1, 2], "store": None}
    assert change_texts(config, hide) == {"coco": "…/coco", "ks": [1, 2], "store": None}


def test_no_absolute_folder_is_in_a_report(tmp_path):
    place = "/home/someone/secret/mini-encoder"
    folder = fake_run.build(
        tmp_path / "run", (dataclasses.replace(FOUR[1], spec=f"st:{place}"), FOUR[0]), n=20,
        prompts=False, failed=True,
    )  # fmt: skip
    build_report(folder)
    for path in (folder / "report").rglob("*"):
        assert path.is_dir() or b"someone" not in path.read_bytes(), path
    rows = (folder / "report" / "ranking.csv").read_text("utf-8")
    assert "st:mini-encoder@efefefefefef" in rows


def test_lone_surrogates_are_written_escaped(run, tmp_path):
    assert text.clean_text("na\udce4me") == "na\\udce4me"
    assert text.clean_text("\ud800") != text.clean_text("\ud801")
    fake_run.change_prediction(run, warnings=["caf\udce9 is odd"])
    folder = build_report(run, tmp_path / "report").parent
    assert "caf\\udce9 is odd" in (folder / "index.html").read_bytes().decode("utf-8")


# ------------------------------------------------------------------------- damaged files

ODD = (None, True, -1, 3.5, 10**30, "", "x", "\ud800", [], [None], {}, {"a": [1]}, [[1, 2], 3])


def damage(value, rng: random.Random):
    """A copy of some JSON with one thing in it exchanged, dropped or added."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value))
        kind = rng.random()
        if kind < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.2:
            return {**value, rng.choice(("", "new", "\ud800")): rng.choice(ODD)}
        return {**value, key: damage(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        return [*value[:place], damage(value[place], rng), *value[place + 1 :]]
    return rng.choice(ODD)


PATHS = {"record": "records/*/retrieval.main.json", "gallery": "media/gallery.json",
         "config": "config.json"}  # fmt: skip


def report_on_damage(folder: str, name: str, times: int = 150) -> None:
    """Report on a run over and over with one file damaged, and count refusals. Figures are left
    out, since drawing is slow."""
    path = next(Path(folder).glob(PATHS[name]))
    whole, rng, refusals = json.loads(path.read_text()), random.Random(0), 0
    build.draw_figures = lambda *_: FigureSet()
    for _ in range(times):
        path.write_text(json.dumps(damage(whole, rng)))
        try:
            build_report(Path(folder))
        except EncbenchError as error:
            line = str(error)
            refusals += str(path) in line and "\n" not in line
    print(times, refusals)


@pytest.mark.parametrize("name", PATHS)
def test_whatever_is_damaged_is_one_line_or_a_report(tmp_path, name):
    """As a user meets it: in tests, type checks would refuse such a file even earlier."""
    folder = fake_run.build(tmp_path / "run", FOUR[:1], n=20, variants=False, prompts=False)
    call = f"import test_reports_seams as t; t.report_on_damage({str(folder)!r}, {name!r})"
    done = subprocess.run(
        [sys.executable, "-c", call], cwd=Path(__file__).parent, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    times, refusals = map(int, done.stdout.split())
    assert 5 < refusals < times
