"""A report with a confirmation: the verdict comes first, in words that claim no more than it
does; figures, tables and files; and what may be missing."""

import csv
import dataclasses
import io
import json
import math
import re
import shutil
from pathlib import Path

import fake_run
import fake_verdict
import pytest
from fake_run import CONTROLS, FOUR
from fake_verdict import ALIKE, HELD, REVERSED, cell

from encbench.errors import RecordError
from encbench.files import digest
from encbench.records import (
    CellVerdict,
    ChoiceVerdict,
    OrderVerdict,
    read_verdict,
    write_verdict,
)
from encbench.reports import confirm_tables, confirm_words, text
from encbench.reports.build import build_report
from encbench.reports.confirm_words import confirm_warnings, headline, statements
from encbench.reports.confirmation import Confirmation, load_confirmation, load_grids
from encbench.reports.figure_set import draw_figures
from encbench.reports.figures import Drawing
from encbench.reports.load import load_run
from encbench.reports.scatter import draw_predicted, trained_marks
from encbench.types import Estimate

FIGURES = {
    "confirm-predicted", "confirm-steps", "confirm-training", "confirm-velocity", "confirm-cost",
    "confirm-paper",
}  # fmt: skip
EVIL = "<script>|&$x_1$[a](javascript:b)"


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A small ranked run without a verdict."""
    return fake_run.build(
        tmp_path_factory.mktemp("confirm") / "run", FOUR[:2], controls=CONTROLS[3:4], n=20,
        prompts=False, diagnostics=False, variants=False, gallery=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def held(bare, tmp_path_factory) -> Path:
    """The same, confirmed, with its report."""
    folder = Path(shutil.copytree(bare, tmp_path_factory.mktemp("held") / "run"))
    fake_verdict.build(folder, failed=True)
    build_report(folder)
    return folder


@pytest.fixture(scope="module")
def confirmation(held) -> Confirmation:
    return loaded(held)


@pytest.fixture
def copy(bare, tmp_path) -> Path:
    return Path(shutil.copytree(bare, tmp_path / "run"))


def loaded(folder: Path) -> Confirmation:
    found = load_confirmation(load_run(folder))
    assert found is not None
    return found


def changed(c: Confirmation, **fields) -> Confirmation:
    return Confirmation(c.run, dataclasses.replace(c.verdict, **fields))


def told(c: Confirmation) -> str:
    return " ".join(f"{s.title} {s.answer} {s.why} {' '.join(s.more)}" for s in statements(c))


def test_methods_by_steps_and_metric_beside_published_ones(confirmation, copy):
    """A row for each model and number of steps, a column for each metric; published models that
    one of the metrics was reported of are marked, and gray in the page."""
    tables = confirm_tables.breakdown_tables(confirmation)
    assert not any("Each method" in title for title, _ in tables)
    fake_verdict.build(copy)
    c = loaded(copy)
    rows = []
    for row in c.verdict.encoders:
        nine = dataclasses.replace(row.scores[cell(4)], value=9.0)
        more = {
            cell(steps)._replace(metric=name): nine
            for steps in c.steps
            for name in ("dpg", "fid", "gone")
        }
        rows.append(dataclasses.replace(row, scores={**row.scores, **more}))
    c = changed(c, encoders=rows)
    title, table = confirm_tables.breakdown_tables(c)[-1]
    assert title.startswith("Each method, number of steps and metric")
    assert table.head == (
        "Method", "Steps", "GenEval", "DPG-Bench", "FID (lower is better)", "gone",
    )  # fmt: skip
    ours = [row for row in table.rows if row.kind != "published"]
    assert len(ours) == len(c.rows) * len(c.steps)
    assert {row.cells[3].text for row in ours} == {"9.000"}
    published = [row for row in table.rows if row.kind == "published"]
    assert ("EMF (published)", "4", "0.900", "0.812") in {
        tuple(cell.whole for cell in row.cells[:4]) for row in published
    }
    write_verdict(copy / "verdict.json", c.verdict)
    build_report(copy)
    assert '<tr class="published">' in (copy / "report" / "index.html").read_text("utf-8")


# -------------------------------------------------------------------------------- words


def test_a_prediction_that_held_is_called_confirmed(confirmation):
    said = headline(confirmation)
    assert said == (
        "Confirmed: CLIP ViT-L/14 is the best choice. Trained, it beats every rival. "
        "The predicted order is confirmed."
    )
    assert [s.kind for s in statements(confirmation)] == ["yes", "yes", "yes"]
    assert "came first of 4" in told(confirmation)
    assert "p = 0.042, exact" in told(confirmation)


def test_a_reversed_order_is_overturned_by_name(copy):
    fake_verdict.build(copy, REVERSED)
    c = loaded(copy)
    assert headline(c).startswith(
        "Overturned: CLIP ViT-L/14 is not the best choice. Trained, T5 v1.1 XXL beats it."
    )
    assert "The predicted order is not confirmed." in headline(c)
    assert [s.kind for s in statements(c)][:2] == ["no", "no"]
    assert statements(c)[0].answer == "overturned by T5 v1.1 XXL"
    assert "came 4th of 4" in told(c)
    table = confirm_tables.lead_table(c)
    assert table is not None
    assert table.rows[-1].cells[-1].text == "the rival"


def test_one_seed_and_equal_models_cannot_tell(copy):
    fake_verdict.build(copy, ALIKE, seeds=1)
    c = loaded(copy)
    assert headline(c) == (
        "Not settled: is CLIP ViT-L/14 the best choice? Not settled: is the predicted order right?"
    )
    assert [s.kind for s in statements(c)][:2] == ["open", "open"]
    assert "one seed says nothing" in told(c).lower()
    assert "trained once" in confirm_words.confirm_summary(c)
    assert confirm_warnings(c)[0] == "Each encoder was trained once."


def test_the_second_question_has_a_statement_and_a_sentence_of_its_own(confirmation):
    v = confirmation.verdict
    rival = v.encoders[1].spec
    asked = CellVerdict(
        v.primary._replace(tier="B"), "reader-other-words",
        dataclasses.replace(v.choice, verdict=f"overturned by {rival}"),
        dataclasses.replace(v.rule, verdict="can't tell", why="p = 0.3"),
        dataclasses.replace(v.control, low=-0.01),
    )  # fmt: skip
    c = changed(confirmation, second=asked)
    assert headline(c).startswith(headline(confirmation))
    assert "In other words: overturned: CLIP ViT-L/14 is not the best choice." in headline(c)
    last = statements(c)[-1]
    assert (last.kind, last.answer) == ("no", f"overturned by {c.name(rival)}")
    wanted = ("order is not settled: p = 0.3", "(tier B)", "rule reader-other-words", "means l")
    assert all(words in " ".join(last.more) for words in wanted)
    assert len(statements(confirmation)) == 3


def test_a_choice_without_its_rule_is_put_into_proportion(confirmation):
    rule = dataclasses.replace(confirmation.verdict.rule, verdict="not confirmed")
    assert "does not make the rule behind it right" in told(changed(confirmation, rule=rule))


def test_a_lead_over_the_constant_that_may_be_chance_is_not_called_one(confirmation):
    control = dataclasses.replace(confirmation.verdict.control, low=-0.01)
    (last,) = statements(changed(confirmation, control=control))[2:]
    assert (last.answer, last.kind) == ("not clearly", "open")
    assert "hardly follow" in last.more[-1]
    (last,) = statements(changed(confirmation, control=None))[2:]
    assert last.answer == "not tested"


def test_a_spec_that_begins_another_is_not_named_for_it(confirmation):
    short, long = HELD[0].spec, f"{HELD[0].spec}?step=3pct"
    first, second = confirmation.verdict.encoders[:2]
    rows = [first, dataclasses.replace(second, spec=long, name="early")]
    c = changed(confirmation, encoders=rows)
    assert c.rename(f"{long} beats {short}") == "early beats CLIP ViT-L/14"


def test_what_a_reader_must_know_is_warned_of(confirmation):
    rows = confirmation.verdict.encoders
    stages = [dataclasses.replace(rows[0], stage="3pct"), *rows[1:]]
    high = dataclasses.replace(rows[-1], scores=rows[0].scores)
    c = changed(confirmation, prediction="0" * 64, encoders=[*stages[:-1], high])
    found = " ".join(confirm_warnings(c))
    assert "earlier prediction (sha256 000000000000…)" in found
    assert "dropped 1 of 3 rivals and 200 of 800 training steps" in found
    assert "2 stages of training" in found
    assert "The control constant scored" in found
    assert "no less than 4 of 4 trained encoders" in found
    assert not any("scored" in line for line in confirm_warnings(confirmation))


# ------------------------------------------------------------------------------ figures


def test_every_figure_is_drawn_with_words(confirmation):
    figures = draw_figures(confirmation, "confirmation")
    drawings = figures.drawings
    assert drawings.keys() == FIGURES
    assert sum(map(len, figures.sections.values())) == len(FIGURES)  # no reason for a gap
    for drawing in drawings.values():
        assert drawing.png.startswith(b"\x89PNG")
        assert b"mathdefault" not in drawing.svg
        assert len(drawing.alt) > 40
        assert len(drawing.caption) > 80
    for steps in ("1 step", "2 steps", "4 steps", "16 steps"):
        assert f"<!-- {steps} -->" in drawings["confirm-predicted"].svg.decode()
    assert "<!-- switch -->" in drawings["confirm-training"].svg.decode()
    paper = drawings["confirm-paper"]
    assert "<!-- Pearson 0.91, n = 4 -->" in paper.svg.decode()
    assert "<!-- Pearson 0.59, n = 4 -->" in paper.svg.decode()
    assert "2604.18168" in paper.caption


def test_many_encoders_are_numbered_and_stages_marked(confirmation):
    first = confirmation.verdict.encoders[0]
    rows = [
        dataclasses.replace(first, spec=f"zoo:{i}", name=f"model {i}", predicted_rank=i + 1,
                            stage="final" if i < 4 else "3pct")
        for i in range(7)
    ]  # fmt: skip
    c = changed(confirmation, encoders=[*rows, confirmation.verdict.encoders[-1]])
    marks = trained_marks(c, c.rows)
    assert [marks.labels[row.spec] for row in c.rows] == ["1", "2", "3", "4", "5", "6", "7", "a"]
    assert marks.styles[c.rows[0].spec].marker != marks.styles[c.rows[6].spec].marker
    drawing = draw_predicted(c)
    assert isinstance(drawing, Drawing)
    assert "<!-- stage 3pct -->" in drawing.svg.decode()
    assert "<!-- model 6 -->" in drawing.svg.decode()


# ------------------------------------------------------------------------- the whole page


def test_the_verdict_comes_first_and_the_ranking_follows(held):
    source = (held / "report" / "index.html").read_text("utf-8")
    page = source[source.index("<body>") :]
    assert page.index("Confirmed: CLIP") < page.index('id="confirmation"')
    assert page.index('id="confirm-plan"') < page.index('id="ranking"')
    assert read_verdict(held / "verdict.json").prediction in page
    assert "within reach for the rule" in page
    assert "its weights no longer load" in page
    anchors = set(re.findall(r'href="#([a-z-]+)"', page))
    assert anchors <= set(re.findall(r'id="([a-z-]+)"', page))
    markdown = (held / "report" / "report.md").read_text("utf-8")
    assert markdown.startswith("**Confirmed: CLIP ViT-L/14 is the best choice.")
    assert markdown.index("## Confirmation") < markdown.index("## Ranking")


def test_grids_are_embedded_and_lie_beside_the_report(held, confirmation):
    source = (held / "report" / "index.html").read_text("utf-8")
    grids = load_grids(confirmation)
    assert len(grids) == len(HELD)
    assert all(f'src="{grid.image.uri}"' in source for grid in grids)
    markdown = (held / "report" / "report.md").read_text("utf-8")
    pictures = re.findall(r"\]\((figures/[a-z0-9-]+\.png)\)", markdown)
    assert {f"figures/{grid.file}.png" for grid in grids} <= set(pictures)
    assert all((held / "report" / picture).is_file() for picture in pictures)


def test_the_csv_has_a_row_for_each_encoder_and_cell(held):
    verdict = read_verdict(held / "verdict.json")
    content = (held / "report" / "confirmation.csv").read_text("utf-8")
    rows = list(csv.DictReader(io.StringIO(content)))
    assert len(rows) == sum(len(row.scores) for row in verdict.encoders)
    values = {(row["spec"], row["cell"]): float(row["value"]) for row in rows}
    for row in verdict.encoders:
        assert values[row.spec, str(cell(4))] == row.scores[cell(4)].value
    (main,) = [row for row in rows if row["primary"] == "True" and row["spec"] == HELD[0].spec]
    assert (main["steps"], main["tier"], main["combos"]) == ("4", "B", "seen")
    assert float(main["colors"]) == verdict.encoders[0].tasks[cell(4)]["colors"]
    assert len(main["by_seed"].split()) == 2


def test_the_tex_table_is_the_table_of_encoders(held, confirmation):
    tex = (held / "report" / "confirmation.tex").read_text("utf-8")
    table = confirm_tables.outcome_table(confirmation)
    assert tex.count(r"\\") == len(table.rows) + 1
    for row in table.rows:
        assert all(text.tex(shown.whole) in tex for shown in row.cells)


def test_without_a_verdict_nothing_of_a_confirmation_is_left(held, tmp_path):
    folder = Path(shutil.copytree(held, tmp_path / "run"))
    (folder / "verdict.json").unlink()
    build_report(folder)
    names = {path.name for path in (folder / "report").rglob("*")}
    assert not [name for name in names if name.startswith("confirm")]
    source = (folder / "report" / "index.html").read_text("utf-8")
    assert "confirm" not in source.lower()
    assert "confirm" not in (folder / "report" / "report.md").read_text("utf-8").lower()


# ----------------------------------------------------------------------- what may be missing


def test_missing_fields_and_pictures_break_nothing(copy):
    verdict = fake_verdict.build(copy, grids=False)
    nothing = {"parameters": 0, "tasks": {}, "by_seed": {}, "parent": {}, "curve": [], "gap": [],
               "training_seconds": [], "scoring_seconds": [], "folders": []}  # fmt: skip
    rows = [dataclasses.replace(row, **nothing) for row in verdict.encoders]
    rows[0] = dataclasses.replace(rows[0], grid="../../etc/passwd", scores={})
    rows[1] = dataclasses.replace(rows[1], predicted=Estimate(0.5, math.nan, math.nan), grid="")
    fake_verdict.build(
        copy, grids=False, encoders=rows, rules={}, exploratory=[], control=None, reach=None,
        plan=dataclasses.replace(verdict.plan, encoders=(), train={}, gave_up=(), detector=""),
        provenance={}, choice=ChoiceVerdict("can't tell"), rule=OrderVerdict(), data={},
    )  # fmt: skip
    (copy / "confirm" / "models" / "model-2-s0").mkdir(parents=True)
    (copy / "confirm" / "models" / "model-2-s0" / "grid.png").write_text("no picture")
    source = build_report(copy).read_text("utf-8")
    assert "No samples were kept." in source
    assert "No training was scored on its way." in source
    assert "Without a score in the verdict&#39;s cell: CLIP ViT-L/14." in source
    assert "Too few encoders" in source


def test_a_verdict_without_any_encoder_says_so(copy):
    fake_verdict.build(copy, HELD[-1:])
    source = build_report(copy).read_text("utf-8")
    assert "No encoder was trained, so nothing is confirmed and nothing is refuted." in source


@pytest.mark.parametrize(
    "changes", [{"choice": {"verdict": "x", "leads": [3]}}, {"plan": []}, {"failed": ["x"]}]
)
def test_a_verdict_of_the_wrong_shape_is_named(copy, changes):
    fake_verdict.build(copy, grids=False)
    path = copy / "verdict.json"
    body = {**json.loads(path.read_text()), **changes}
    del body["hash"]
    path.write_text(json.dumps({**body, "hash": digest(body)}))
    with pytest.raises(RecordError, match=rf"verdict\.json: {next(iter(changes))}.* must"):
        load_confirmation(load_run(copy))


def test_a_changed_verdict_is_refused(copy):
    fake_verdict.build(copy, grids=False)
    path = copy / "verdict.json"
    path.write_text(path.read_text().replace('"confirmed"', '"overturned"', 1))
    with pytest.raises(RecordError, match="was changed after it was made"):
        build_report(copy)


def test_text_from_data_stays_text(copy):
    models = (dataclasses.replace(HELD[0], name=EVIL), *HELD[1:])
    fake_verdict.build(copy, models, warnings=[EVIL], rules={"choice": EVIL})
    source = build_report(copy).read_text("utf-8")
    assert "<script>|" not in source
    assert source.count("<script") == 1
    markdown = (copy / "report" / "report.md").read_text("utf-8")
    assert "<script" not in markdown
    assert not re.search(r"(?<!\\)\]\(javascript", markdown)
    assert r"\$x\_1\$" in markdown
    tex = (copy / "report" / "confirmation.tex").read_text("utf-8")
    line = next(line for line in tex.splitlines() if "script" in line)
    assert r"\$x\_1\$" in line
    assert line.replace(r"\&", "").count("&") == 6
