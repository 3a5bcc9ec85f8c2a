"""A whole report: what it says first, what it carries, and what it must never let through."""

import csv
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import fake_run
import pytest
from fake_run import CONTROLS, FOUR, Fake

from encbench.errors import EncbenchError, RecordError, StoreError
from encbench.files import read_json, write_json
from encbench.records import read_prediction
from encbench.reports import tables, text
from encbench.reports.build import build_report
from encbench.reports.load import load_run

ROOT = Path(__file__).resolve().parents[1]
EVIL = '<script>alert(1)</script> "a" & b'
NAME = (
    """"><img src=x onerror=alert(1)> 'q' 100%_of_$x^2$ & | [a](javascript:alert(1)) \\input{y}"""
)


class Page(HTMLParser):
    """Elements with their attributes, and the text outside scripts and styles."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("script", "style", "title") and data.strip():
            self.words.append(" ".join(data.split()))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.elements if name == tag]


def page_of(folder: Path) -> Page:
    return Page((folder / "report" / "index.html").read_text("utf-8"))


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    folder = fake_run.build(tmp_path_factory.mktemp("build") / "full", failed=True)
    build_report(folder)
    return folder


@pytest.fixture(scope="module")
def evil(tmp_path_factory) -> Path:
    encoders = (Fake(f"st:{NAME}", NAME, 0.8, 10**7, license=EVIL), FOUR[1])
    folder = fake_run.build(
        tmp_path_factory.mktemp("build") / "evil", encoders, caption=EVIL, prompts=False, n=30
    )
    gallery = read_json(folder / "media" / "gallery.json")
    gallery["images"]["1000"] |= {"license": EVIL, "url": "javascript:alert(1)"}
    write_json(folder / "media" / "gallery.json", gallery)
    write_json(
        folder / "config.json", {"encoders": [NAME], "note": "</pre><script>alert(2)</script>"}
    )
    build_report(folder)
    return folder


@pytest.fixture(scope="module")
def _small(tmp_path_factory) -> Path:
    encoder = FOUR[:1]
    return fake_run.build(
        tmp_path_factory.mktemp("build") / "small", encoder, controls=CONTROLS[3:], n=20,
        prompts=False, variants=False,
    )  # fmt: skip


@pytest.fixture
def small(_small, tmp_path) -> Path:
    """A copy of a little run that a test may break."""
    return Path(shutil.copytree(_small, tmp_path / "run"))


# ------------------------------------------------------------------------ what it says


def test_every_format_is_there(full):
    report = full / "report"
    names = {str(p.relative_to(report)) for p in report.rglob("*") if p.is_file()}
    assert {"index.html", "report.md", "ranking.csv", "ranking.tex", "scores.csv"} <= names
    pngs = {n.removesuffix(".png") for n in names if n.endswith(".png")}
    assert pngs == {n.removesuffix(".svg") for n in names if n.endswith(".svg")}
    assert "figures/ranking" in pngs
    assert not [n for n in names if Path(n).name.startswith(".")]  # no half-written file


def test_the_advice_is_the_first_line(full):
    advice = read_prediction(full / "prediction.json").advice.text
    assert advice.startswith("Use CLIP ViT-L/14. The data cannot tell it from MiniLM-L6")
    assert advice.endswith("the smallest of these is MiniLM-L6.")
    page = page_of(full)
    assert page.words[:2] == ["Skip to the ranking", advice]
    markdown = (full / "report" / "report.md").read_text("utf-8")
    assert markdown.splitlines()[0].startswith(f"**{text.markdown(advice)}** ")
    assert "encbench" in (full / "report" / "index.html").read_text("utf-8").split("</title>")[0]


def test_every_section_of_the_contents_exists(full):
    page = page_of(full)
    wanted = {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")}
    assert len(wanted) >= 14
    assert wanted <= {attrs["id"] for _, attrs in page.elements if "id" in attrs}


def test_provenance_is_on_the_page(full):
    words = " ".join(page_of(full).words)
    prediction = read_prediction(full / "prediction.json")
    for part in (prediction.hash, *prediction.data.values(), fake_run.PROVENANCE["commit"],
                 "torch 2.15.0", "2604.18168", "labels"):  # fmt: skip
        assert str(part) in words


def test_a_failed_encoder_is_named_with_its_reason(full):
    words = " ".join(page_of(full).words)
    assert "t5:google/umt5-xxl" in words
    assert "hub unreachable" in words


def test_csv_holds_every_digit_of_the_prediction(full):
    rows = list(csv.DictReader(io.StringIO((full / "report" / "ranking.csv").read_text("utf-8"))))
    order = read_prediction(full / "prediction.json").order
    assert len(rows) == len(order)
    for row, ranked in zip(rows, order, strict=True):
        assert row["spec"] == ranked.spec
        assert [float(row[k]) for k in ("value", "low", "high")] == [
            ranked.value, ranked.low, ranked.high,
        ]  # fmt: skip
        assert (row["rank"] or None) == (None if ranked.control else str(ranked.rank))
        assert int(row["n"]) == ranked.n


def test_all_scores_are_in_scores_csv(full):
    rows = list(csv.DictReader(io.StringIO((full / "report" / "scores.csv").read_text("utf-8"))))
    run = load_run(full)
    expected = {
        (r.card.spec, r.probe.name, name): entry.value
        for r in run.records
        for name, entry in r.scores.items()
    }
    assert {(r["spec"], r["probe"], r["score"]): float(r["value"]) for r in rows} == expected


def test_markdown_tex_and_html_show_the_same_ranking(full):
    """Every cell of the ranking, in each format's own escapes."""
    table = tables.ranking_table(load_run(full))
    markdown = (full / "report" / "report.md").read_text("utf-8")
    tex = (full / "report" / "ranking.tex").read_text("utf-8")
    words = page_of(full).words
    assert tex.count(r"\\") == len(table.rows) + 1
    for row in table.rows:
        for cell in row.cells:
            assert text.markdown(cell.text) in markdown
            assert text.tex(cell.whole) in tex
            assert cell.text in words
            assert not cell.note or cell.note in words


def test_controls_are_marked_and_have_no_number(full):
    run = load_run(full)
    table = tables.ranking_table(run)
    assert len(run.controls) == len(CONTROLS) + len(FOUR)
    for row, ranked in zip(table.rows, run.prediction.order, strict=True):
        assert (row.kind == "control") == ranked.control
        assert (row.cells[0].text == "control") == ranked.control
        assert row.cells[1].text == "–" or not ranked.control


def test_published_values_stand_beside_ours(full):
    table = tables.published_table(load_run(full))
    assert table is not None
    found = {(r.cells[0].text, r.cells[1].text): r.cells[3].text for r in table.rows}
    assert found["CLIP ViT-L/14", "discriminability"] == "0.730"
    assert found["T5 v1.1 XXL", "disentanglement"] == "0.893"
    assert not any(name == "MiniLM-L6" for name, _ in found)


def test_saturated_orders_are_flagged(full):
    table = tables.rival_table(load_run(full))
    remarks = {row.cells[0].text: row.cells[-1].text for row in table.rows}
    assert "saturated" in remarks["ablation: identification"]
    assert remarks["ablation: calibrated"] == ""


def test_the_same_run_gives_the_same_bytes(full, tmp_path):
    again = build_report(full, tmp_path / "again").parent
    for path in sorted(p for p in again.rglob("*") if p.is_file()):
        assert path.read_bytes() == (full / "report" / path.relative_to(again)).read_bytes(), path


def test_nothing_of_where_the_run_lies_is_in_the_report(full):
    for path in (full / "report").rglob("*"):
        if path.is_file():
            assert str(full).encode() not in path.read_bytes()


# ----------------------------------------------------------------- what it must not do


@pytest.mark.parametrize("which", ["full", "evil"])
def test_the_page_asks_for_nothing_outside_itself(which, request):
    folder = request.getfixturevalue(which)
    source = (folder / "report" / "index.html").read_text("utf-8")
    page = Page(source)
    for tag, attrs in page.elements:
        for name in (
            "src",
            "href",
            "srcset",
            "poster",
            "data",
            "action",
            "xlink:href",
            "background",
        ):
            value = attrs.get(name)
            if value is None:
                continue
            if tag == "a":
                assert value.startswith(("#", "https://", "http://"))
            else:
                assert value.startswith(("data:", "#")), (tag, name, value[:60])
        assert "url(" not in attrs.get("style", "")
        assert tag not in ("iframe", "object", "embed", "base", "form")
    style = re.findall(r"<style>(.*?)</style>", source, re.S)
    assert len(style) == 1
    assert "url(" not in style[0]
    assert "@import" not in style[0]
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert "default-src 'none'" in policy


def test_text_from_data_stays_text_in_html(evil):
    source = (evil / "report" / "index.html").read_text("utf-8")
    page = Page(source)
    assert len(page.all("script")) == 1
    assert len(page.all("pre")) == 1
    assert not [(t, k) for t, attrs in page.elements for k in attrs if k.startswith("on")]
    figures = [svg for svg in page.all("svg") if svg.get("class") != "thumb" and "role" in svg]
    assert len(figures) >= 2
    assert any(NAME.split()[0] in svg["aria-label"] for svg in figures)
    marks = [g for g in page.all("g") if g.get("class") == "mark"]
    assert " ".join(NAME.split()) in {mark["data-name"] for mark in marks}
    assert not [a for a in page.all("a") if "javascript" in a["href"]]
    words = " ".join(page.words)
    assert EVIL in words
    assert " ".join(NAME.split()) in words
    assert "<script>alert(2)</script>" in words


def test_text_from_data_stays_text_in_markdown(evil):
    markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    source = (evil / "report" / "report.md").read_text("utf-8")
    tokens = markdown_it.MarkdownIt("commonmark").enable("table").parse(source)
    kinds, links, pictures = set(), set(), set()
    for token in tokens:
        kinds.add(token.type)
        for child in token.children or []:
            kinds.add(child.type)
            links |= {child.attrs["href"]} if child.type == "link_open" else set()
            pictures |= {child.attrs["src"]} if child.type == "image" else set()
    assert not kinds & {"html_inline", "html_block"}
    assert links == {"https://arxiv.org/abs/2604.18168"}
    assert pictures
    assert all(re.fullmatch(r"figures/[a-z-]+\.png", p) for p in pictures)
    widths = {len(row) for row in markdown_rows(tokens)}
    assert min(widths) > 1


def markdown_rows(tokens) -> list[list[str]]:
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows:
            rows[-1].append(token.content)
    return rows


def test_a_pipe_in_a_name_does_not_add_a_column(evil):
    markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    table = tables.to_markdown(tables.ranking_table(load_run(evil)))
    rows = markdown_rows(markdown_it.MarkdownIt("commonmark").enable("table").parse(table))
    assert {len(row) for row in rows} == {7}


def test_text_from_data_stays_text_in_tex(evil):
    tex = (evil / "report" / "ranking.tex").read_text("utf-8")
    line = next(line for line in tex.splitlines() if "onerror" in line)
    assert r"\input" not in line
    assert r"100\%\_of\_\$x\textasciicircum{}2\$" in line
    assert line.replace(r"\&", "").count("&") == 6


def test_a_thumbnail_from_elsewhere_is_not_shown(small, tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes((small / "media" / "1000.jpg").read_bytes())
    gallery = read_json(small / "media" / "gallery.json")
    before = len(page_of_built(small).all("image"))
    (small / "media" / "text.jpg").write_text("not an image")
    bad = ["../secret.jpg", "media/../../secret.jpg", str(secret), "media/none.jpg",
           "media/text.jpg", 7, "media/\0.jpg"]  # fmt: skip
    for thumb, image_id in zip(bad, gallery["images"], strict=False):
        gallery["images"][image_id]["thumb"] = thumb
    write_json(small / "media" / "gallery.json", gallery)
    assert before > 5
    assert page_of_built(small).all("image") == []


def page_of_built(folder: Path) -> Page:
    build_report(folder)
    return page_of(folder)


def test_each_picture_is_embedded_once_and_described(full):
    page = page_of(full)
    images = page.all("image")
    names = [image["id"] for image in images]
    assert len(set(names)) == len(names) == len({image["href"] for image in images})
    uses = [use["href"] for use in page.all("use") if "href" in use]
    assert len(uses) > len(names)
    assert {use[1:] for use in uses} == set(names)
    described = [a for a in page.all("svg") if a.get("class") == "thumb"]
    assert len(described) == len(uses)
    assert all(a["aria-label"] for a in described)
    figures = [a for a in page.all("svg") if a.get("role") == "img" and a not in described]
    assert len(figures) > 5
    assert all(len(svg["aria-label"]) > 20 for svg in figures)


# ------------------------------------------------------------------ what may be missing


@pytest.mark.parametrize(
    "options",
    [
        {"encoders": ()},
        {"encoders": (), "prompts": False, "diagnostics": False, "gallery": False},
        {"encoders": FOUR[:1], "controls": ()},
        {"encoders": FOUR[:2], "images": False, "prompts": False},
        {"encoders": FOUR[:2], "variants": False, "diagnostics": False, "gallery": False},
    ],
    ids=["controls-only", "bare-controls", "one-encoder", "text-only", "no-diagnostics"],
)
def test_reports_work_with_missing_pieces(tmp_path, options):
    folder = fake_run.build(tmp_path / "run", n=30, **options)
    page = page_of_built(folder)
    assert page.words[1] == read_prediction(folder / "prediction.json").advice.text
    shown = " ".join(page.words)
    assert "None of the candidates" in shown or options["encoders"]
    assert (folder / "report" / "report.md").stat().st_size > 500


def test_a_run_without_config_or_media_is_enough(tmp_path):
    folder = fake_run.build(tmp_path / "run", FOUR[:2], n=30, prompts=False, gallery=False)
    (folder / "config.json").unlink()
    assert "This run kept no examples." in page_of_built(folder).words


def test_an_unknown_probe_is_shown_like_any_other(tmp_path):
    folder = fake_run.build(tmp_path / "run", FOUR[:2], n=30, prompts=False, diagnostics=False)
    records = {}
    for path in sorted((folder / "records").rglob("retrieval.*.json")):
        value = read_json(path)
        value["probe"] |= {"name": "later <b>", "main_metric": "novel", "title": "a later probe"}
        value["scores"] = {"novel": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "unscored": 0}}
        value |= {"key": f"later {path.parent.name}", "series": {"curves": 3, "similarity": [1]}}
        write_json(path.with_name("later.mean.json"), value)
        records[value["key"]] = path
    prediction = read_json(folder / "prediction.json")
    rival = {
        "probe": "later <b>", "score": "novel", "order": [e.spec for e in FOUR[:2]],
        "scores": {e.spec: {"value": 0.5, "low": 0.4, "high": 0.6} for e in FOUR[:2]},
        "direction": "lower", "published": False, "saturated": False, "agreement": None,
    }  # fmt: skip
    fake_run.change_prediction(folder, records=[*prediction["records"], *records], rivals=[rival])
    words = page_of_built(folder).words
    assert "later <b>: a later probe" in words
    assert "later <b>: novel" in words
    assert "lower is better" in words
    assert "later <b>" in (folder / "report" / "scores.csv").read_text("utf-8")


def test_leftovers_of_an_earlier_run_are_not_reported(tmp_path):
    folder = fake_run.build(tmp_path / "run", FOUR[:2], n=30, prompts=False)
    path = next((folder / "records").rglob("MiniLM*/retrieval.main.json"))
    value = read_json(path) | {"key": "of another run", "notes": ["a leftover note"]}
    value["card"] |= {"spec": "st:other"}
    write_json(folder / "records" / "other" / "retrieval.main.json", value)
    build_report(folder)
    for name in ("index.html", "scores.csv"):
        content = (folder / "report" / name).read_text("utf-8")
        assert "st:other" not in content
        assert "leftover" not in content


def test_a_prediction_that_names_no_records_has_all(small):
    before = page_of_built(small).words
    fake_run.change_prediction(small, records=[])
    after = page_of_built(small).words
    differing = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert all("sha256" in a for a, _ in differing)


def test_a_figure_that_is_no_longer_drawn_is_removed(tmp_path):
    folder = fake_run.build(tmp_path / "run", FOUR[:2], n=30, prompts=False, gallery=False)
    figures = folder / "report" / "figures"
    figures.mkdir(parents=True)
    for name in ("ablation.png", "ablation.svg", "others-probe.png", "mine.png"):
        (figures / name).write_bytes(b"old")
    earlier = "![Prompt ablation](figures/ablation.png)\n![A probe](figures/others-probe.png)\n"
    (folder / "report" / "report.md").write_text(earlier)
    build_report(folder)
    left = {path.name for path in figures.iterdir()}
    assert not left & {"ablation.png", "ablation.svg", "others-probe.png"}
    assert {"mine.png", "ranking.png"} <= left


# ---------------------------------------------------------------------------- bad input


def refused(folder: Path) -> str:
    with pytest.raises(EncbenchError) as error:
        build_report(folder)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_folder_without_a_prediction_is_refused_by_name(tmp_path):
    message = refused(tmp_path / "nowhere")
    assert "nowhere" in message
    assert "encbench rank" in message


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b'{"kind": "run", "schema": 1}', b'{"kind": "run", "schema": 99}', b"\xff\xfe\0"],
    ids=["cut", "list", "empty", "newer", "binary"],
)
def test_a_damaged_record_is_named_and_earlier_results_stay(small, content):
    build_report(small)
    before = (small / "report" / "index.html").read_bytes()
    path = sorted((small / "records").rglob("retrieval.main.json"))[0]
    path.write_bytes(content)
    with pytest.raises(RecordError):
        build_report(small)
    assert str(path) in refused(small)
    assert (small / "report" / "index.html").read_bytes() == before


def test_a_record_of_the_wrong_shape_is_named(small):
    """As a user meets it: in tests, type checks would refuse such a record even earlier."""
    path = sorted((small / "records").rglob("retrieval.main.json"))[0]
    changes = [
        {"probe": {}}, {"scores": {"scaled@2": 3}}, {"scores": []}, {"card": "x"}, {"notes": None},
    ]  # fmt: skip
    script = (
        "import json, pathlib, sys\n"
        "from encbench.reports.build import build_report\n"
        "from encbench.errors import RecordError\n"
        "small, path = map(pathlib.Path, sys.argv[1:3])\n"
        "whole = json.loads(path.read_text())\n"
        "for change in json.loads(sys.argv[3]):\n"
        "    path.write_text(json.dumps({**whole, **change}))\n"
        "    try:\n"
        "        build_report(small)\n"
        "    except RecordError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(small), str(path), json.dumps(changes)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == len(changes)
    assert all(str(path) in line for line in lines)


def test_a_changed_prediction_is_refused(small):
    path = small / "prediction.json"
    value = json.loads(path.read_text())
    value["advice"]["text"] = "Use something else."
    path.write_text(json.dumps(value))
    assert "was changed" in refused(small)


@pytest.mark.parametrize("name", ["config.json", "media/gallery.json"])
def test_a_broken_side_file_is_named(small, name):
    (small / name).write_text("[1, 2]")
    assert str(small / name) in refused(small)


def test_a_gallery_with_odd_entries_loses_only_those(small):
    path = small / "media" / "gallery.json"
    gallery = read_json(path)
    cases = gallery["encoders"][FOUR[0].spec]
    cases["worst"] = [None, 5, {"query": 3}, {"retrieved": [1]}, {}]
    gallery["images"]["1007"] = "nothing"
    write_json(path, gallery)
    words = page_of_built(small).words
    assert "Best" in words
    assert "Worst" not in words


def test_an_unwritable_place_is_one_line(small):
    (small / "report").write_text("a file where the folder should be")
    with pytest.raises(StoreError):
        build_report(small)
    refused(small)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_line(small):
    small.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert "permission" in refused(small)
    small.chmod(stat.S_IRWXU)


def test_lone_surrogates_and_emoji_do_not_stop_a_report(tmp_path):
    odd = replace(FOUR[1], name="emoji 🙂 \ud800 \u202e\x07 name")
    folder = fake_run.build(
        tmp_path / "run", (FOUR[0],), n=20, prompts=False, caption="🙂 caf\u00e9 \u202e x"
    )
    prediction = read_json(folder / "prediction.json")
    for row in prediction["order"]:
        row["name"] = odd.name if row["spec"] == FOUR[0].spec else row["name"]
    path = folder / "prediction.json"
    from encbench.files import digest

    body = {k: v for k, v in prediction.items() if k != "hash"}
    path.write_text(json.dumps({**body, "hash": digest(body)}))
    words = " ".join(page_of_built(folder).words)
    assert "🙂 café" in words
    assert "\u202e" not in words
