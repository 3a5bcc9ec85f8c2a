"""The verdict: parity with the published evaluator, laws, and the edges of its rules."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encbench.data.geneval import COLORS, RELATIONS, Clause, GenevalPrompt
from encbench.errors import DataError
from encbench.metrics.geneval.verdict import (
    MAX_OBJECTS,
    judge_image,
    needs_color,
    overlap,
    relations_of_boxes,
)
from encbench.types import Detection

ROOT = Path(__file__).resolve().parents[1]
LABELS = ("dog", "cat", "bus")


def prompt(*include, exclude=(), task="two_object"):
    return GenevalPrompt(0, task, "", tuple(include), tuple(exclude))


def found(label, box=(0.0, 0.0, 10.0, 10.0), score=0.95, color=None):
    return Detection(label, box, score, color=color)


def test_published_verdicts(shared):
    cases = shared / "geneval" / "verdict_cases.jsonl"
    script = ROOT / "benchmarks" / "geneval_parity.py"
    done = subprocess.run(
        [sys.executable, script, cases], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "agree 1106 / 1106", done.stdout + done.stderr
    assert done.returncode == 0


def test_parity_tells_a_case_that_differs(shared, tmp_path):
    lines = (shared / "geneval" / "verdict_cases.jsonl").read_text().splitlines()[:5]
    lines[2] = lines[2].replace('"correct": true', '"correct": false')
    (tmp_path / "cases.jsonl").write_text("\n".join(lines) + "\n")
    script = ROOT / "benchmarks" / "geneval_parity.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "cases.jsonl"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "agree 4 / 5"
    assert "case 3" in done.stdout


# ----------------------------------------------------------------------------------- laws

side = st.integers(0, 60).map(float)
detections = st.builds(
    lambda label, x, y, w, h, score, color: Detection(
        label, (x, y, x + w, y + h), score, color=color
    ),
    st.sampled_from(LABELS),
    side,
    side,
    side,
    side,
    st.sampled_from([0.1, 0.3, 0.31, 0.5, 0.9, 0.91, 1.0]),
    st.sampled_from(COLORS[:3]),
)
images = st.lists(detections, max_size=20)


@st.composite
def clauses(draw, positions=True):
    made = []
    for place in range(draw(st.integers(1, 3))):
        position = None
        if positions and place and draw(st.booleans()):
            position = (draw(st.sampled_from(RELATIONS)), draw(st.integers(0, place - 1)))
        label = draw(st.sampled_from(LABELS))
        color = draw(st.sampled_from([None, None, *COLORS[:2]]))
        made.append(Clause(label, draw(st.integers(1, 3)), color, position))
    return made


tasks = st.sampled_from(["two_object", "counting"])
limits = st.sampled_from([1.0, 0.5, 0.1])


@settings(max_examples=300, deadline=None)
@given(images, clauses(), tasks, limits, st.data())
def test_a_clause_repeated_at_the_end_changes_no_verdict(image, include, task, limit, data):
    again = data.draw(st.sampled_from(include))
    once = judge_image(image, prompt(*include, task=task), overlap_limit=limit)
    twice = judge_image(image, prompt(*include, again, task=task), overlap_limit=limit)
    assert once.correct == twice.correct


@settings(max_examples=300, deadline=None)
@given(images, clauses(), tasks, st.lists(detections, max_size=20))
def test_lower_scored_objects_spoil_no_verdict_without_exclusions(image, include, task, more):
    lowest = min((d.score for d in image), default=1.0)
    extra = [
        Detection(d.label, d.box, d.score * lowest * 0.999, color=d.color)
        for d in more  # a tie would be won by the later one
    ]
    asked = prompt(*include, task=task)
    if judge_image(image, asked).correct:
        assert judge_image([*image, *extra], asked).correct
        assert judge_image([*extra, *image], asked).correct


@settings(max_examples=300, deadline=None)
@given(images, clauses(positions=False), tasks, limits, st.randoms(use_true_random=False))
def test_order_of_clauses_without_position_does_not_matter(image, include, task, limit, rng):
    other = list(include)
    rng.shuffle(other)
    one = judge_image(image, prompt(*include, task=task), overlap_limit=limit)
    two = judge_image(image, prompt(*other, task=task), overlap_limit=limit)
    assert one.correct == two.correct
    assert sorted(one.reason.split("\n")) == sorted(two.reason.split("\n"))


@settings(max_examples=200, deadline=None)
@given(st.tuples(side, side, side, side), st.tuples(side, side, side, side))
def test_relations_turn_round_with_their_objects(a, b):
    turned = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert {turned[name] for name in relations_of_boxes(a, b)} == set(relations_of_boxes(b, a))
    assert relations_of_boxes(a, a) == []


@settings(max_examples=200, deadline=None)
@given(images, clauses(), tasks, limits)
def test_clause_results_add_up(image, include, task, limit):
    verdict = judge_image(image, prompt(*include, task=task), overlap_limit=limit)
    assert len(verdict.clauses) == len(include)
    assert verdict.correct == all(clause.correct for clause in verdict.clauses)
    assert verdict.correct == (verdict.reason == "")
    for result, clause in zip(verdict.clauses, include, strict=True):
        assert len(result.objects) <= clause.count
        assert {image[i].label for i in result.objects} <= {clause.label}


# ---------------------------------------------------------------------------------- edges


def test_nothing_detected():
    verdict = judge_image([], prompt(Clause("dog"), Clause("cat", position=("left of", 0))))
    assert verdict.reason == "expected dog>=1, found 0\nexpected cat>=1, found 0"
    assert (
        judge_image([], prompt(Clause("dog"), exclude=[Clause("cat", 1)])).reason.count("\n") == 0
    )


@pytest.mark.parametrize(
    ("task", "score", "correct"),
    [
        ("colors", 0.3, False),
        ("colors", 0.300001, True),
        ("counting", 0.9, False),
        ("counting", 0.900001, True),
        ("counting", 0.5, False),
    ],
)
def test_a_score_must_pass_its_threshold(task, score, correct):
    assert (
        judge_image([found("dog", score=score)], prompt(Clause("dog"), task=task)).correct
        == correct
    )


def test_at_most_sixteen_objects_count():
    many = [found("dog") for _ in range(20)]
    assert judge_image(many, prompt(Clause("dog", MAX_OBJECTS))).correct
    verdict = judge_image(many, prompt(Clause("dog", MAX_OBJECTS + 1)))
    assert verdict.reason == "expected dog>=17, found 16"
    assert judge_image(many, prompt(Clause("dog"), exclude=[Clause("dog", 17)])).correct


def test_exclusion():
    two = [found("dog"), found("dog")]
    assert judge_image(two, prompt(Clause("dog", 2), exclude=[Clause("dog", 3)])).correct
    verdict = judge_image(
        [*two, found("dog")], prompt(Clause("dog", 2), exclude=[Clause("dog", 3)])
    )
    assert verdict.reason == "expected dog<3, found 3"
    assert not verdict.clauses[1].correct
    assert verdict.clauses[0].correct


def test_of_equal_scores_the_later_comes_first():
    pair = [found("dog", color="red"), found("dog", color="blue")]
    assert judge_image(pair, prompt(Clause("dog", color="blue"))).correct
    verdict = judge_image(pair, prompt(Clause("dog", color="red")))
    assert verdict.reason == "expected red dog>=1, found 0 red; and 1 blue"


def test_colors_are_told_in_their_order_and_must_be_there():
    dogs = [found("dog", color=c) for c in ("white", "red", "blue")]
    verdict = judge_image(dogs, prompt(Clause("dog", 3, "blue")))
    assert verdict.reason == "expected blue dog>=3, found 1 blue; and 1 red, 1 blue, 1 white"
    with pytest.raises(DataError, match=r"has no color.*add a color classifier"):
        judge_image([found("dog")], prompt(Clause("dog", color="red")))
    with pytest.raises(DataError, match="'mauve', none of the ten"):
        judge_image([found("dog", color="mauve")], prompt(Clause("dog", color="red")))


def test_needed_colors_are_those_of_the_best_where_there_are_enough():
    three = [found("dog", score=0.5), found("dog", score=0.8), found("cat")]
    asked = prompt(Clause("dog", color="red"), Clause("cat", 2, "blue"))
    assert needs_color(three, asked) == [1]
    assert needs_color([found("dog", color="red")], asked) == []


def test_equal_centers_have_no_relation():
    assert relations_of_boxes((0.0, 0.0, 10.0, 10.0), (2.0, 2.0, 8.0, 8.0)) == []
    pair = [found("dog", (0.0, 0.0, 10.0, 10.0)), found("cat", (2.0, 2.0, 8.0, 8.0))]
    verdict = judge_image(pair, prompt(Clause("cat"), Clause("dog", position=("above", 0))))
    assert verdict.reason == "expected dog above target, found  target"


def test_offset_is_shrunk_by_a_tenth_of_both_sizes():
    box = (0.0, 0.0, 10.0, 10.0)
    assert relations_of_boxes((2.0, 0.0, 12.0, 10.0), box) == []  # 2 - 0.1 * 20 = 0
    assert (
        relations_of_boxes((4.0, 0.0, 14.0, 10.0), box) == []
    )  # (4 - 2) / 4 is not above one half
    assert relations_of_boxes((4.001, 0.0, 14.001, 10.0), box) == ["right of"]


def test_boxes_without_area():
    point = (5.0, 5.0, 5.0, 5.0)
    assert relations_of_boxes(point, point) == []
    assert relations_of_boxes((0.0, 5.0, 0.0, 5.0), point) == ["left of"]
    assert relations_of_boxes((0.0, 0.0, 0.0, 0.0), point) == ["left of", "above"]
    assert overlap(point, point) == 1  # a pixel
    assert overlap((5.0, 5.0, 3.0, 3.0), (5.0, 5.0, 3.0, 3.0)) == 0
    assert judge_image([found("dog", point)], prompt(Clause("dog"))).correct


def test_overlap_limit_is_met_exactly():
    one, half = (0.0, 0.0, 9.0, 9.0), (0.0, 0.0, 9.0, 4.0)
    assert overlap(one, half) == 0.5
    pair = [found("dog", one, 0.9), found("dog", half, 0.8)]
    assert not judge_image(pair, prompt(Clause("dog", 2)), overlap_limit=0.5).correct
    assert judge_image(pair, prompt(Clause("dog", 2)), overlap_limit=0.51).correct
    same = [found("dog", one, 0.9), found("dog", one, 0.8)]
    assert judge_image(same, prompt(Clause("dog", 2)), overlap_limit=1.0).correct


def test_every_pair_must_stand_in_the_relation():
    targets = [found("cat", (50.0, 0.0, 60.0, 10.0)), found("cat", (0.0, 0.0, 10.0, 10.0))]
    asked = prompt(Clause("cat", 2), Clause("dog", position=("left of", 0)))
    verdict = judge_image([*targets, found("dog", (25.0, 0.0, 35.0, 10.0))], asked)
    assert verdict.reason == "expected dog left of target, found right of target"


def test_target_that_is_missing():
    asked = prompt(Clause("cat"), Clause("dog", position=("left of", 0)))
    verdict = judge_image([found("dog")], asked)
    assert verdict.reason == "expected cat>=1, found 0\nno target for dog to be left of"
