"""Blind studies: the page tells nothing, answers come back, planted preferences are found."""

import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from encbench import cli
from encbench.errors import DataError, UsageError
from encbench.study.answers import (
    Answer,
    evaluate_answers,
    fit_strengths,
    measure_agreement,
    read_study,
)
from encbench.study.page import Pair, build_study

KEY = {
    "version": 1, "study": "s", "question": "q", "models": ["x", "y"],
    "pairs": [{"pair_id": "a", "prompt": "p", "left": "x", "right": "y"}],
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"models": []},
        {"models": ["x"]},
        {"models": ["x", "y", "y"]},
        {"pairs": [{"pair_id": "a", "prompt": "p", "left": "x", "right": "x"}]},
    ],
)
def test_a_key_whose_parts_differ_is_one_line(tmp_path, change):
    key, answers = tmp_path / "key.json", tmp_path / "one.json"
    said = {"study": "s", "person": "p", "answers": [{"pair": "a", "choice": "left"}]}
    answers.write_text(json.dumps(said))
    key.write_text(json.dumps(KEY))
    assert read_study(key, [answers]).people == 1
    key.write_text(json.dumps(KEY | change))
    with pytest.raises(DataError, match=r"key\.json: its pairs and models do not belong together"):
        read_study(key, [answers])


@pytest.fixture
def folders(tmp_path):
    """Images of three models with the same 6 captions, one color a model."""
    made = {}
    for name, color in (("emf", "red"), ("blip", "blue"), ("sana", "green")):
        folder = tmp_path / f"images-{name}"
        folder.mkdir()
        rows = []
        for i in range(6):
            Image.new("RGB", (64, 64), color).save(folder / f"{i}.png")
            rows.append(json.dumps({"file_name": f"{i}.png", "text": f"caption <b>{i}</b>"}))
        (folder / "captions.jsonl").write_text("\n".join(rows))
        made[name] = folder
    return made


def page_data(out):
    text = (out / "study.html").read_text()
    return json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', text, re.S).group(1))


def test_the_page_holds_everything_and_tells_nothing(folders, tmp_path):
    out = tmp_path / "study"
    assert build_study(folders, out) == 18
    text = (out / "study.html").read_text()
    key = json.loads((out / "key.json").read_text())
    assert not any(name in text for name in ("emf", "blip", "sana", str(tmp_path)))
    assert "http" not in text.replace("http-equiv", "")
    data = page_data(out)
    assert len(data["images"]) == 18  # each image once
    assert {row["id"] for row in data["pairs"]} == {row["pair_id"] for row in key["pairs"]}
    assert [row["id"] for row in data["pairs"]] != [row["pair_id"] for row in key["pairs"]]
    counts = {}
    for row in key["pairs"]:
        two = tuple(sorted((row["left"], row["right"])))
        counts[two] = counts.get(two, 0) + 1
    assert set(counts.values()) == {6}
    assert len({row["left"] for row in key["pairs"]}) == 3  # sides are drawn
    build_study(folders, tmp_path / "again")
    assert (tmp_path / "again" / "study.html").read_text() == text
    build_study(folders, tmp_path / "other", seed=1)
    assert page_data(tmp_path / "other")["study"] != data["study"]


def test_fewer_pairs_show_each_two_models_as_often(folders, tmp_path):
    assert build_study(folders, tmp_path / "s", pairs=7) == 7
    key = json.loads((tmp_path / "s" / "key.json").read_text())
    two = [tuple(sorted((row["left"], row["right"]))) for row in key["pairs"]]
    assert sorted(two.count(each) for each in set(two)) == [2, 2, 3]
    with pytest.raises(UsageError, match="there are 18 different pairs"):
        build_study(folders, tmp_path / "s", pairs=19)
    with pytest.raises(UsageError, match="at least two models"):
        build_study({"emf": folders["emf"]}, tmp_path / "s")
    (folders["emf"] / "captions.jsonl").write_text('{"file_name": "0.png", "text": "another"}')
    with pytest.raises(DataError, match="have images of no common prompt"):
        build_study(folders, tmp_path / "s")


def respond(out, name, choose, person="p1", drop=0):
    key = json.loads((out / "key.json").read_text())
    rows = [{"pair": row["pair_id"], "choice": choose(row)} for row in key["pairs"]]
    record = {"version": 1, "study": key["study"], "person": person}
    path = out / name
    path.write_text(json.dumps({**record, "answers": rows[drop:]}))
    return path


def prefers(*order):
    return lambda row: min(("left", "right"), key=lambda side: order.index(row[side]))


def test_answers_come_back_by_the_command(folders, tmp_path, capsys):
    out = tmp_path / "s"
    models = [f"{name}={folder}" for name, folder in folders.items()]
    with pytest.raises(SystemExit) as ended:
        cli.main(["study", "make", "--models", *models, "--out", str(out)])
    assert ended.value.code == 0, capsys.readouterr().err
    one = respond(out, "a.json", prefers("blip", "emf", "sana"), "p1")
    two = respond(out, "b.json", prefers("blip", "emf", "sana"), "p2")
    three = respond(out, "c.json", lambda row: "tie", "p3", drop=9)
    with pytest.raises(SystemExit) as ended:
        cli.main(
            ["study", "read", str(out / "key.json"), str(one), str(two), str(three),
             "--out", str(tmp_path / "r.json")]
        )  # fmt: skip
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert "45 answers of 3 people" in said
    assert "1 of 3 people did not answer all 18 pairs" in said
    record = json.loads((tmp_path / "r.json").read_text())
    assert list(record["strengths"]) == ["blip", "emf", "sana"]
    assert record["ties"] == pytest.approx(9 / 45)
    # 9 pairs by all three (1 of 3 twos agrees), 9 by the two that agree
    assert record["agreement"] == pytest.approx((9 * 1 + 9) / (9 * 3 + 9))


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome is installed")
def test_a_person_answers_by_keyboard_in_a_browser(folders, tmp_path):
    """Right, left, a tie, one key too many, back, left: the reader takes what is saved."""
    out = tmp_path / "s"
    build_study(folders, out, pairs=3)
    keys = ("ArrowRight", "ArrowLeft", "ArrowDown", "ArrowRight", "Backspace", "ArrowLeft")
    press = "".join(
        f'document.dispatchEvent(new KeyboardEvent("keydown", {{ key: "{key}" }}));\n'
        for key in keys
    )
    told = 'document.getElementById("prompt").textContent = JSON.stringify(record());\n'
    page = (out / "study.html").read_text()
    head, script = page.split("<script>")
    script, tail = script.split("</script>")
    script += press + told
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    path = out / "pressed.html"
    page = f"{head}<script>{script}</script>{tail}"
    path.write_text(re.sub(r"'sha256-[^']+'", f"'sha256-{allowed}'", page))
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    shown = re.search(r'<p id="prompt"[^>]*>(.*?)</p>', done.stdout, re.S)
    assert shown, done.stdout[-2000:] + done.stderr[-2000:]
    record = json.loads(html.unescape(shown.group(1)))
    assert sorted(row["choice"] for row in record["answers"]) == ["left", "left", "right"]
    file = out / "answers.json"
    file.write_text(json.dumps(record))
    assert read_study(out / "key.json", [file]).answers == 3


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda r: r.update(study="other"), "holds answers to another study"),
        (lambda r: r["answers"][0].update(pair="x"), "there is no pair 'x' in this study"),
        (lambda r: r["answers"][0].update(choice="up"), "choice must be 'left', 'right' or 'tie'"),
        (lambda r: r["answers"].append(r["answers"][0]), "answers a pair twice"),
        (lambda r: r.update(answers=[]), "there are no answers to read"),
    ],
)
def test_broken_answers_are_one_line(folders, tmp_path, spoil, said):
    build_study(folders, tmp_path)
    path = respond(tmp_path, "a.json", lambda row: "left")
    record = json.loads(path.read_text())
    spoil(record)
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=said):
        read_study(tmp_path / "key.json", [path])


def test_two_files_of_one_person(folders, tmp_path):
    build_study(folders, tmp_path)
    path = respond(tmp_path, "a.json", lambda row: "left")
    same = respond(tmp_path, "b.json", lambda row: "left")
    assert read_study(tmp_path / "key.json", [path, same]).people == 1
    other = respond(tmp_path, "c.json", lambda row: "right")
    with pytest.raises(DataError, match="same person but differ"):
        read_study(tmp_path / "key.json", [path, other])


STRENGTHS = {"a": 0.8, "b": 0.2, "c": -0.3, "d": -0.7}


def simulate(rng, people=12, prompts=20, ties=0.1, alike=1):
    """Answers by planted strengths; ties are taken from both sides alike. A person answers the
    same about each ``alike`` prompts in a row."""
    names, found = sorted(STRENGTHS), []
    for person in range(people):
        for prompt in range(prompts):
            if prompt % alike == 0:
                left, right = map(str, rng.choice(names, 2, replace=False))
                better = rng.random() < 1 / (1 + np.exp(STRENGTHS[right] - STRENGTHS[left]))
                choice = "tie" if rng.random() < ties else "left" if better else "right"
            pair = Pair(f"{left}{right}{prompt}", f"prompt {prompt}", left, right)
            found.append(Answer(f"p{person}", pair, choice))
    return found


@pytest.mark.parametrize("alike", [1, 4])
def test_planted_preferences_come_out_with_intervals_that_hold(alike):
    """100 simulated studies: intervals hold the planted strengths in 95 % of them or a little
    more, and are about as wide as they must be; also where answers of a person are copies of each
    other, which intervals without clusters would take for evidence."""
    rng = np.random.default_rng(0)
    truth = np.array(list(STRENGTHS.values()))
    found = [fit_strengths(simulate(rng, ties=0, alike=alike), list(STRENGTHS)) for _ in range(100)]
    values, low, high = (
        np.array([[getattr(row[name], end) for name in STRENGTHS] for row in found])
        for end in ("value", "low", "high")
    )
    assert values.mean(axis=0) == pytest.approx(truth, abs=0.1)
    held = ((low <= truth) & (truth <= high)).mean()
    assert 0.92 <= held <= 0.995, held
    wide = ((high - low).mean(axis=0) / 2 / (1.96 * values.std(axis=0))).mean()
    assert 0.85 <= wide <= 1.4, wide


def test_planted_preferences_come_out_in_order():
    many = evaluate_answers(simulate(np.random.default_rng(1), 60, 40), list(STRENGTHS))
    assert list(many.strengths) == list(STRENGTHS)
    assert many.ties == pytest.approx(0.1, abs=0.02)
    assert many.left == pytest.approx(0.5, abs=0.04)
    assert many.wins["a", "d"].low > 0.5


def test_one_model_that_always_wins_has_a_finite_strength():
    pair = Pair("x", "p", "a", "b")
    answers = [Answer(f"p{i}", pair, "left") for i in range(20)]
    result = evaluate_answers(answers, ["a", "b"])
    assert 1 < result.strengths["a"].value < 10
    assert result.wins["a", "b"].value == 1


def test_agreement_by_hand():
    """Two people on three pairs, by Krippendorff's own formula for nominal data."""
    pairs = [Pair(str(i), f"p{i}", "a", "b") for i in range(3)]
    said = (("left", "left"), ("left", "right"), ("right", "right"))
    answers = [
        Answer(person, pair, choice)
        for pair, row in zip(pairs, said, strict=True)
        for person, choice in zip("xy", row, strict=True)
    ]
    agreement, alpha = measure_agreement(answers)
    assert agreement == pytest.approx(2 / 3)
    observed, expected = 2 / 6, 1 - (3 * 2 + 3 * 2) / (6 * 5)
    assert alpha == pytest.approx(1 - observed / expected)
    assert measure_agreement(answers[:1]) == (None, None)
