"""GenEval's prompts: the published file, the grammar, and prompts drawn by seed."""

import json
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encbench.data.fetch import fetch_dataset
from encbench.data.geneval import (
    CLASSES,
    COLORS,
    OPPOSITE,
    PUBLISHED,
    TASKS,
    article,
    from_metadata,
    generate_prompts,
    load_geneval,
    pluralize,
    prompt_text,
    to_metadata,
    write_geneval,
)
from encbench.errors import DataError, UnknownNameError, UsageError
from encbench.metrics.geneval.run import choose_prompts

ALL = dict.fromkeys(TASKS, 12)


@pytest.fixture(scope="module")
def published(shared):
    return load_geneval(shared / "geneval")


def test_published_prompts_are_read_whole(published, shared):
    assert Counter(p.task for p in published) == PUBLISHED
    assert [p.prompt_id for p in published] == list(range(553))
    assert list(CLASSES) == (shared / "geneval" / "object_names.txt").read_text().split("\n")[:80]


def test_grammar_gives_all_published_texts(published):
    assert [prompt_text(p.include, published=True) for p in published] == [
        p.text for p in published
    ]


def test_published_file_comes_back_to_the_byte(published, shared, tmp_path):
    write_geneval(published, tmp_path / "again.jsonl")
    original = (shared / "geneval" / "evaluation_metadata.jsonl").read_bytes()
    assert (tmp_path / "again.jsonl").read_bytes() == original


def test_right_english_differs_from_the_published_only_where_that_is_wrong(published):
    changed = {p.text: prompt_text(p.include) for p in published}
    changed = {old: new for old, new in changed.items() if old != new}
    assert len(changed) == 27
    assert changed["a photo of four knifes"] == "a photo of four knives"
    assert changed["a photo of three persons"] == "a photo of three people"
    assert changed["a photo of an orange scissors"] == "a photo of a pair of orange scissors"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("oven", "an"),
        ("orange cake", "an"),
        ("unicorn", "a"),
        ("umbrella", "an"),
        ("hour", "an"),
        ("horse", "a"),
        ("red oven", "a"),
        ("urn", "an"),
        ("uniform", "a"),
    ],
)
def test_articles(words, expected):
    assert article(words) == expected


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("wine glass", "wine glasses"),
        ("bus", "buses"),
        ("bench", "benches"),
        ("box", "boxes"),
        ("butterfly", "butterflies"),
        ("toy", "toys"),
        ("computer mouse", "computer mice"),
        ("cross", "crosses"),
        ("star", "stars"),
    ],
)
def test_plurals(one, many):
    assert pluralize(one) == many


def meaning(prompt):
    things = [(c.label, c.count, c.color) for c in prompt.include]
    relation = prompt.include[-1].position
    if relation:
        pairs = {(things[1], relation[0], things[0]), (things[0], OPPOSITE[relation[0]], things[1])}
        return frozenset(pairs)
    return frozenset(things)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sets(st.sampled_from(CLASSES), min_size=6, max_size=20))
def test_drawn_prompts_keep_the_form(seed, labels):
    labels = sorted(labels)
    drawn = generate_prompts(labels, seed=seed, per_task=ALL | {"single_object": 6})
    assert [p.prompt_id for p in drawn] == list(range(66))
    assert len({(p.task, meaning(p)) for p in drawn}) == len(drawn)
    for prompt in drawn:
        assert from_metadata(to_metadata(prompt), prompt.prompt_id) == prompt
        assert prompt.text == prompt_text(prompt.include)
        assert {c.label for c in prompt.include} <= set(labels)
        if prompt.task == "counting":
            ((one,), (more,)) = prompt.include, prompt.exclude
            assert (more.label, more.count) == (one.label, one.count + 1)
        else:
            assert not prompt.exclude
        if len(prompt.include) == 2:
            first, second = prompt.include
            assert first.label != second.label
        if prompt.task == "color_attr":
            assert first.color != second.color
            assert {first.color, second.color} <= set(COLORS)


def test_same_seed_same_prompts_and_more_of_them_begin_the_same():
    few = generate_prompts(CLASSES, seed=3, per_task={"colors": 5, "position": 5})
    many = generate_prompts(CLASSES, seed=3, per_task={"position": 40})
    assert few == generate_prompts(CLASSES, seed=3, per_task={"colors": 5, "position": 5})
    assert [p.text for p in few[5:]] == [p.text for p in many[:5]]
    other = generate_prompts(CLASSES, seed=4, per_task={"position": 40})
    assert [p.text for p in other] != [p.text for p in many]


def test_all_prompts_of_a_small_world_can_be_had_and_no_more():
    world = ["cube", "ring", "star"]
    whole = {
        "single_object": 3,
        "two_object": 3,
        "counting": 9,
        "colors": 30,
        "position": 12,
        "color_attr": 270,
    }
    assert len(generate_prompts(world, seed=0, per_task=whole)) == sum(whole.values())
    for task, count in whole.items():
        with pytest.raises(UsageError, match=f"only {count} different {task} prompts"):
            generate_prompts(world, seed=0, per_task={task: count + 1})


def test_prompts_that_are_not_allowed_are_drawn_again():
    drawn = generate_prompts(
        CLASSES,
        seed=0,
        per_task={"counting": 30},
        allowed=lambda prompt: prompt.include[0].count == 3,
    )
    assert len(drawn) == 30
    assert {p.include[0].count for p in drawn} == {3}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tag": "sorting"}, "tag must be one of single_object.*'sorting'"),
        ({"include": []}, "include holds no clause"),
        ({"include": [{"count": 1}]}, "include clause 0 has no class"),
        ({"include": [{"class": "dog", "count": 0}]}, "count 0, not a number from 1 up"),
        ({"include": [{"class": "dog", "count": True}]}, "count True"),
        (
            {"include": [{"class": "dog", "count": 1, "color": "mauve"}]},
            "text 'mauve', not one",
        ),
        (
            {"include": [{"class": "dog", "count": 1, "position": ["beside", 0]}]},
            "position .*left of",
        ),
        (
            {"include": [{"class": "dog", "count": 1, "position": ["left of", 0]}]},
            "not an earlier clause",
        ),
        ({"exclude": 3}, "exclude is not a list"),
        ({"prompt": 3}, "prompt must be a text, not 3"),
    ],
)
def test_broken_metadata_is_told_in_one_line_with_its_place(tmp_path, change, said):
    good = {"tag": "colors", "include": [{"class": "dog", "count": 1}], "prompt": "a photo"}
    path = tmp_path / "some.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | change) + "\n")
    with pytest.raises(DataError, match=said) as caught:
        load_geneval(path)
    assert re.match(r"line 2 of .*some\.jsonl: ", str(caught.value))
    assert "\n" not in str(caught.value)


def test_other_bad_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"tag":\n')
    with pytest.raises(DataError, match=r"line 1 of .*a\.jsonl is not valid JSON"):
        load_geneval(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no prompts"):
        load_geneval(tmp_path / "b.jsonl")
    with pytest.raises(DataError, match="data fetch geneval"):
        load_geneval(tmp_path / "c.jsonl")


def test_bad_wishes():
    with pytest.raises(UnknownNameError, match="color 'mauve'"):
        generate_prompts(CLASSES, seed=0, per_task={}, colors=["mauve"])
    with pytest.raises(UnknownNameError, match="single_object"):
        generate_prompts(CLASSES, seed=0, per_task={"single": 1})
    with pytest.raises(UsageError, match="named twice"):
        generate_prompts(["dog", "dog"], seed=0, per_task={})
    with pytest.raises(UsageError, match="neither a number nor"):
        choose_prompts(None, per_task="many")


def test_choice_of_prompts(tmp_path):
    (tmp_path / "classes.txt").write_text("cube\nring\n")
    chosen = choose_prompts(None, classes=tmp_path / "classes.txt", per_task="colors=4,counting=2")
    assert Counter(p.task for p in chosen) == {"colors": 4, "counting": 2}
    write_geneval(chosen, tmp_path / "p.jsonl")
    assert choose_prompts(tmp_path / "p.jsonl") == chosen


def test_fetch_knows_the_published_file(shared, tmp_path):
    """A file that is there and right is not downloaded; a changed one would be."""
    source = shared / "geneval" / "evaluation_metadata.jsonl"
    copy = tmp_path / source.name
    copy.write_bytes(source.read_bytes())
    assert fetch_dataset("geneval", tmp_path, confirm=lambda plan: False) == copy
    copy.write_bytes(source.read_bytes()[1:])
    asked = []
    with pytest.raises(UsageError, match="nothing was downloaded"):
        fetch_dataset("geneval", tmp_path, confirm=lambda plan: asked.append(plan))
    assert "djghosh13/geneval/archive/af4902f" in asked[0]
    assert "license: MIT" in asked[0]
