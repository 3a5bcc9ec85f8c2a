"""DPG-Bench by hand-made answers; questions from GenEval's clauses; an answerer of transformers."""

import csv
import json

import metric_checkpoints
import numpy as np
import pytest
import torch
from PIL import Image
from test_geneval_judge import TASKS, satisfying

from encbench.data.geneval import Clause, GenevalPrompt, pluralize
from encbench.data.scenes.prompts import scene_prompts
from encbench.data.scenes.render import render, to_bytes
from encbench.data.scenes.world import (
    GROUNDS,
    Scene,
    SceneBatch,
    SceneObject,
    colors_on,
    get_world,
)
from encbench.errors import DataError, EncbenchError, ModelError, UsageError
from encbench.metrics.answer import QUESTION, VlmAnswerer, ask_all, load_answerer
from encbench.metrics.dpg import COLUMNS, DpgMetric, Question, judge_answers, load_questions
from encbench.metrics.prompts import TextPrompt
from encbench.metrics.score import ImageResult, PromptResult
from encbench.metrics.tables import part_scores, task_scores
from encbench.metrics.vqa import VqaMetric, questions_of

TREE = (
    Question(1, "Is there a dog?", (), "entity"),
    Question(2, "Is the dog red?", (1,), "attribute"),
    Question(3, "Is there a house?", (), "entity"),
    Question(4, "Is the dog in the house?", (1, 3), "relation"),
    Question(5, "Is it the red dog's house?", (4, 2), "relation"),
)


@pytest.mark.parametrize(
    ("yes", "right"),
    [
        ("11111", "11111"),
        ("01111", "00100"),  # without the dog neither its color nor its place counts
        ("11011", "11000"),
        ("10111", "10110"),  # a question two levels down
        ("11101", "11100"),
        ("00000", "00000"),
    ],
)
def test_a_question_counts_only_if_its_parents_are_right(yes, right):
    answers = {q.number: flag == "1" for q, flag in zip(TREE, yes, strict=True)}
    found = judge_answers(TREE, answers)
    assert "".join(str(int(found[i])) for i in range(1, 6)) == right


def test_the_order_of_questions_does_not_matter():
    answers = {1: False, 2: True, 3: True, 4: True, 5: True}
    assert judge_answers(TREE[::-1], answers) == judge_answers(TREE, answers)


def test_a_long_chain_of_questions_is_judged():
    chain = [Question(1, "?", (), "entity")]
    chain += [Question(n, "?", (n - 1,), "entity") for n in range(2, 3001)]
    found = judge_answers(chain, {n: n != 1500 for n in range(1, 3001)})
    assert [n for n in found if found[n]] == list(range(1, 1500))


def write_csv(path, rows, columns=COLUMNS):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["keywords", *columns])
        writer.writerows([["", *row] for row in rows])
    return path


ROWS = [
    ("dog1", "A red dog, in a house.", 1, "0", "entity - whole (dog)", "Is there a dog?"),
    ("dog1", "A red dog, in a house.", 2, "1", "attribute - color (dog, red)", "Is the dog red?"),
    ("dog1", "A red dog, in a house.", 3, "0", "entity - whole (house)", "Is there a house?"),
    ("dog1", "A red dog, in a house.", 4, "1, 3", "relation - spatial (dog, in)", "Is it in it?"),
    ("cat2", "A cat.", 1, "0", "entity - whole (cat)", "Is there a cat?"),
]


class Table:
    """Answers by the image's gray level and the question."""

    name = "table"

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def answer(self, images, questions):
        self.asked.append(len(questions))
        return np.array(
            [self.answers[i.getpixel((0, 0))[0], q] for i, q in zip(images, questions, strict=True)]
        )


def gray(value):
    return Image.new("RGB", (8, 8), (value,) * 3)


def test_dpg_scores_by_hand(tmp_path):
    """Four images of one prompt that differ in every category: the score by the dependencies, the
    categories over all four images, the second prompt counted as much as the first."""
    questions = load_questions(write_csv(tmp_path / "q.csv", ROWS))
    asked = [row[5] for row in ROWS[:4]]
    said = {0: (1, 1, 1, 1), 1: (0, 1, 1, 1), 2: (1, 0, 1, 1), 3: (1, 1, 0, 0)}
    table = {(g, q): float(a) for g, row in said.items() for q, a in zip(asked, row, strict=True)}
    table |= {(0, "Is there a cat?"): 0.9, (1, "Is there a cat?"): 0.2}
    metric = DpgMetric(questions, Table(table))
    dog, cat = TextPrompt(0, "whatever", "dog1"), TextPrompt(1, "A cat.")  # by id, and by text
    metric.check([dog, cat])
    scores = metric.score([dog] * 4 + [cat] * 2, [gray(g) for g in (0, 1, 2, 3, 0, 1)])
    assert [score.value for score in scores] == [1, 0.25, 0.75, 0.5, 1, 0]
    assert metric.answerer.asked == [18]  # all together
    images = [ImageResult(str(i), (8, 8), "x", score) for i, score in enumerate(scores)]
    results = [PromptResult(dog, tuple(images[:4])), PromptResult(cat, tuple(images[4:]))]
    parts = {name: score.value for name, score in part_scores(results).items()}
    assert parts == {"entity": 7 / 10, "attribute": 3 / 4, "relation": 3 / 4}
    assert task_scores(results, metric.spec)["overall"].value == pytest.approx(3.5 / 6)


def test_an_image_without_an_answer_is_unscored(tmp_path):
    questions = load_questions(write_csv(tmp_path / "q.csv", ROWS))
    metric = DpgMetric(questions, Table({(0, "Is there a cat?"): np.nan}))
    (score,) = metric.score([TextPrompt(0, "A cat.")], [gray(0)])
    assert (score.value, score.problem) == (
        None, "table answers neither yes nor no to 'Is there a cat?'",
    )  # fmt: skip
    with pytest.raises(DataError, match="no question of the DPG file is about the prompt 'A bird"):
        metric.check([TextPrompt(0, "A bird.")])


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        ([("a", "t", 2, "1", "entity - x (y)", "q?")], COLUMNS, "depends on 1, which is missing"),
        (
            [("a", "t", 1, "2", "entity (y)", "q?"), ("a", "t", 2, "1", "entity (y)", "q?")],
            COLUMNS,
            "depend on each other in a circle",
        ),
        ([("a", "t", 1, "x", "entity (y)", "q?")], COLUMNS, "must be numbers, not '1' and 'x'"),
        ([("a", "t", 1, "0", "entity (y)", "q?")] * 2, COLUMNS, "two questions the same number"),
        ([("a", "t", 1, "0", "", "q?")], COLUMNS, "row 2 .* has no question or no category"),
        ([("a", "t")], COLUMNS, "row 2 of .* has no proposition_id"),
        ([], COLUMNS, "holds no questions"),
        ([("a", "t")], COLUMNS[:2], "has no column proposition_id, dependency"),
    ],
)
def test_broken_questions_are_one_line(tmp_path, rows, columns, said):
    path = write_csv(tmp_path / "q.csv", rows, columns)
    with pytest.raises(DataError, match=said):
        load_questions(path)
    with pytest.raises(DataError, match="run 'encbench data fetch dpg-questions"):
        load_questions(tmp_path / "none.csv")


def test_an_answerer_that_forgets_or_exaggerates():
    class Odd:
        name = "odd"

        def __init__(self, answers):
            self.answers = answers

        def answer(self, images, questions):
            return self.answers

    with pytest.raises(EncbenchError, match=r"odd returned \(1,\) answers to 2 questions"):
        ask_all(Odd(np.zeros(1)), [gray(0)], [["a?", "b?"]])
    with pytest.raises(EncbenchError, match="not a probability"):
        ask_all(Odd(np.array([0.5, 1.5])), [gray(0)], [["a?", "b?"]])


# ------------------------------------------------------------------------------------- vqa


def test_questions_follow_from_clauses():
    red, two = Clause("dog", color="red"), Clause("orange", 2)
    left = Clause("cat", position=("left of", 0))
    assert questions_of(GenevalPrompt(0, "position", "x", (red, left))) == [
        ("object", "Is there a dog in the image?"), ("color", "Is the dog red?"),
        ("object", "Is there a cat in the image?"), ("position", "Is the cat left of the dog?"),
    ]  # fmt: skip
    counted = GenevalPrompt(0, "counting", "x", (two,), (Clause("orange", 3),))
    assert questions_of(counted)[1] == ("count", "Are there exactly two oranges in the image?")
    assert questions_of(GenevalPrompt(0, "counting", "x", (two,)))[1][1].startswith(
        "Are there at least two oranges"
    )


class Oracle:
    """Knows what the scene behind each picture holds; reads the questions as they are written."""

    name = "oracle"

    def __init__(self, images, scenes):
        self.scenes = {i.tobytes(): s.objects for i, s in zip(images, scenes, strict=True)}

    def answer(self, images, questions):
        return np.array(
            [
                float(self.one(self.scenes[image.tobytes()], question))
                for image, question in zip(images, questions, strict=True)
            ]
        )

    def one(self, things, question):
        words = question.rstrip("?").removesuffix(" in the image").split()
        named = [t for t in things if words[-1] in (t.shape, pluralize(t.shape))]
        if words[1] == "there" and words[2] in ("a", "an"):
            return bool(named)
        if words[1] == "there":
            return len(named) == {"two": 2, "three": 3, "four": 4}[words[3]]
        if words[3] in ("left", "right", "above", "below"):
            firsts = [thing for thing in things if thing.shape == words[2]]
            return any(RELATIONS[words[3]](a, b) for a in firsts for b in named)
        return any(t.shape == words[2] and t.color == words[3] for t in things)


RELATIONS = {
    "left": lambda a, b: a.x < b.x, "right": lambda a, b: a.x > b.x,
    "above": lambda a, b: a.y < b.y, "below": lambda a, b: a.y > b.y,
}  # fmt: skip


def test_an_oracle_gives_1_on_true_renders_of_every_task():
    """And less than 1 where a prompt gets the picture of another one."""
    prompts = scene_prompts(per_task=dict.fromkeys(TASKS, 4), combos="both")
    scenes = [satisfying(prompt) for prompt in prompts]
    images = render_all(scenes)
    metric = VqaMetric(Oracle(images, scenes))
    assert [score.value for score in metric.score(prompts, images)] == [1.0] * len(prompts)
    others = [score.value for score in metric.score(prompts, images[4:] + images[:4])]
    assert np.mean(others) < 0.6


def render_all(scenes, side=32):
    pixels = to_bytes(render(SceneBatch.of(scenes), side)).numpy()
    return [Image.fromarray(each) for each in pixels]


def test_an_oracle_gives_chance_on_shuffled_renders():
    """Scenes of one colored shape, or of two side by side, out of the small world: shuffled, a
    prompt gets what is true of another scene by accident."""
    world = get_world("scenes-easy")
    shapes, colors = list(world.shapes), list(world.colors)
    rng = np.random.default_rng(0)
    prompts, scenes = [], []
    for number in range(400):
        a, b = (str(each) for each in rng.choice(shapes, 2, replace=False))
        color = str(rng.choice(colors))
        if number % 2:
            prompts.append(GenevalPrompt(number, "colors", "x", (Clause(a, color=color),)))
            things = ((a, color, 0.5),)
        else:
            clauses = (Clause(a), Clause(b, position=("left of", 0)))
            prompts.append(GenevalPrompt(number, "position", "x", clauses))
            things = ((a, "red", 0.8), (b, "red", 0.2))
        ground = next(g for g in GROUNDS if things[0][1] in colors_on(g))
        objects = tuple(SceneObject(s, c, "medium", x, 0.5, 0.145) for s, c, x in things)
        scenes.append(Scene(objects, ground))
    images = render_all(scenes)
    order = rng.permutation(400)
    metric = VqaMetric(Oracle(images, scenes))
    shuffled = [score.value for score in metric.score(prompts, [images[i] for i in order])]
    n = len(shapes)
    there = (1 / n + 2 / n) / 2  # that a shape is in another scene
    in_place = 0.5 / (n * (n - 1))  # that another scene is of the same two, in this order
    of_color = 0.5 / n / len(colors) + 0.5 * 2 / n * (colors.count("red") / len(colors))
    chance = ((there + of_color) / 2 + (2 * there + in_place) / 3) / 2
    assert np.mean(shuffled) == pytest.approx(chance, abs=0.06)


# -------------------------------------------------------------------------------- answerer


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return metric_checkpoints.llava(tmp_path_factory.mktemp("llava"))


QUESTIONS = ["Is there a dog?", "Are there exactly two dogs in the image?", "Is the cat red?"]


def noise(count=3):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)) for _ in range(count)]


def test_yes_and_no_are_the_model_s_own_next_token(llava):
    """By transformers alone, one question at a time, to 1e-5; and so in batches."""
    import transformers

    model = transformers.LlavaForConditionalGeneration.from_pretrained(llava).eval()
    processor = transformers.AutoProcessor.from_pretrained(llava)
    vocabulary = processor.tokenizer.get_vocab()
    expected = []
    for image, question in zip(noise(), QUESTIONS, strict=True):
        text = f"user : <image> {QUESTION.format(question=question)} assistant : "
        inputs = processor(text=text, images=image, return_tensors="pt")
        with torch.no_grad():
            shares = model(**inputs).logits[0, -1].softmax(-1)
        yes = shares[vocabulary["yes"]] + shares[vocabulary["Yes"]]
        no = shares[vocabulary["no"]] + shares[vocabulary["No"]]
        expected.append(float(yes / (yes + no)))
    assert np.ptp(expected) > 1e-3  # else every answer would be like every other
    together = load_answerer(f"vlm:{llava}?least=0&batch=3", "cpu").answer(noise(), QUESTIONS)
    assert together == pytest.approx(expected, abs=1e-5)
    alone = load_answerer(f"vlm:{llava}?least=0&batch=1", "cpu")
    assert alone.answer(noise(), QUESTIONS) == pytest.approx(expected, abs=1e-5)
    assert "dtype=float32" in alone.name
    assert str(llava) not in alone.name


def test_an_answerer_that_answers_neither_yes_nor_no(llava):
    answerer = load_answerer(f"vlm:{llava}?least=0.99", "cpu")
    assert np.isnan(answerer.answer(noise(), QUESTIONS)).all()


def test_wrong_answerers_are_one_line(llava, tmp_path):
    with pytest.raises(UsageError, match="names no model"):
        load_answerer("vlm", "cpu")
    with pytest.raises(UsageError, match="batch must be 1 or more"):
        load_answerer(f"vlm:{llava}?batch=0", "cpu")
    with pytest.raises(UsageError, match="write python:MODULE:NAME"):
        load_answerer("python:json", "cpu")
    with pytest.raises(ModelError, match="is not an answerer"):
        load_answerer("python:builtins:str", "cpu")
    answerer = load_answerer(f"vlm:{llava}", "cpu")
    answerer.processor.tokenizer.encode = lambda word, **_: [1, 2]
    with pytest.raises(ModelError, match="has no token for them"):
        VlmAnswerer("x", answerer.model, answerer.processor)
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in llava.iterdir():
        if path.name != "chat_template.jinja":
            (bare / path.name).write_bytes(path.read_bytes())
    for name in ("processor_config.json", "tokenizer_config.json"):
        if (bare / name).exists():
            record = json.loads((bare / name).read_text())
            record.pop("chat_template", None)
            (bare / name).write_text(json.dumps(record))
    with pytest.raises(ModelError, match="has no chat template"):
        load_answerer(f"vlm:{bare}", "cpu")
