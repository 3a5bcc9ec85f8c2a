"""The zoo's training: what all members share, that it repeats, resumes and learns."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from encbench.data.scenes.sampler import sample_scenes
from encbench.data.scenes.splits import SPLITS
from encbench.data.scenes.words import WORDS
from encbench.data.scenes.world import colors_on
from encbench.errors import UnknownNameError, UsageError
from encbench.shipped import read_manifest, shipped
from encbench.zoo import train as loop
from encbench.zoo.catalog import FAMILIES, NAMES, ORDER, STAGES, zoo_recipe
from encbench.zoo.clip import BLOCK, alike
from encbench.zoo.dinov3 import balanced, elsewhere
from encbench.zoo.recipe import Schedule
from encbench.zoo.t5 import corrupt
from encbench.zoo.text import (
    CONTEXT,
    SPLIT,
    by_length,
    caption_scenes,
    token_ids,
    tokenizer_for,
    training_captions,
)
from encbench.zoo.train import learning_rate, train_member
from encbench.zoo.vq import CODES, TOKENS, SceneVQ

CURVES = Path(__file__).parent / "golden" / "zoo_curves.json"
STEPS, BATCH = 6, 8
TOLERANCE = 0.02  # of a loss, between machines and versions of torch


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> dict[str, loop.ZooTraining]:
    """Every member, trained for a few steps."""
    out = tmp_path_factory.mktemp("zoo")
    return {name: train_member(name, out, steps=STEPS, batch=BATCH) for name in ORDER}


# -------------------------------------------------------------------------------- text


def test_captions_are_of_training_scenes_in_both_tiers_short_and_long():
    batch = sample_scenes(SPLIT, 240)
    texts = training_captions(batch, 0)
    assert texts == caption_scenes(0, 240, 0).texts
    long = [text.count(".") > 1 for text in texts]
    assert sum(long) == 40
    words = [set(text.lower().replace(".", "").replace(",", "").split()) for text in texts]
    for kind in (True, False):
        of_kind = [w for w, is_long in zip(words, long, strict=True) if is_long == kind]
        in_a = sum(bool(w & {"picture", "photo", "is", "shape", "shapes"}) for w in of_kind)
        assert 0.3 < in_a / len(of_kind) < 0.9
    only_c = {"dot", "pyramid", "asterisk", "lozenge", "scarlet", "cobalt", "behold", "artwork"}
    assert only_c & set(WORDS["C"].shapes.values()) | {"scarlet"}
    assert not only_c & set().union(*words)
    assert SPLITS[SPLIT] == ("A", "B")


def test_a_caption_does_not_depend_on_where_the_batch_begins():
    assert caption_scenes(0, 12, 3).texts[7:] == caption_scenes(7, 5, 3).texts
    assert caption_scenes(0, 12, 3).texts != caption_scenes(0, 12, 4).texts


def test_families_share_ids_and_no_text_is_unknown():
    plain = tokenizer_for()
    marked = tokenizer_for(["<one>", "<two>"], start=True, end=True)
    text = "A red circle, left of “un café” \U0001f600 猫"
    ids = token_ids(plain, [text])[0]
    assert token_ids(marked, [text])[0][1:-1] == ids
    assert plain.unk_token_id not in ids
    assert plain.decode(ids).strip() == text.lower()
    assert len(marked) == len(plain) + 2
    words = [w for tier in "AB" for w in WORDS[tier].colors.values()]
    assert all(len(row) == 1 for row in token_ids(plain, words))
    assert len(token_ids(plain, ["word " * 200])[0]) == CONTEXT


def test_parts_of_a_batch_hold_every_row_once_with_little_padding():
    ids = [[1] * n for n in (5, 1, 9, 2, 8)]
    parts = list(by_length(ids, 2))
    assert sorted(torch.cat([p.rows for p in parts]).tolist()) == [0, 1, 2, 3, 4]
    for part in parts:
        assert part.mask.sum(1).tolist() == [len(ids[row]) for row in part.rows]
        assert bool((part.ids[part.mask] == 1).all())
        assert not part.ids[~part.mask].any()
        assert part.mask.any(0).all()


# ----------------------------------------------------------------------------- objectives


def test_cut_spans_put_back_give_the_text():
    draw, sentinels = np.random.default_rng(0), list(range(1000, 1020))
    for length in (3, 13, 76):
        ids = [*range(10, 10 + length), 1]
        for _ in range(20):
            source, target = corrupt(ids, sentinels, draw)
            assert source[-1] == target[-1] == 1
            spans: dict[int, list[int]] = {}
            for token in target[:-1]:
                if token >= 1000:
                    spans[token] = []
                else:
                    spans[list(spans)[-1]].append(token)
            again = [t for token in source[:-1] for t in spans.get(token, [token])]
            assert [*again, 1] == ids
            cut = sum(map(len, spans.values()))
            assert cut == max(round(0.15 * length), 1)


def test_views_keep_what_is_shown_and_move_it_within_the_image():
    batch = sample_scenes("reencoder-train", 200)
    moved = elsewhere(batch, np.random.default_rng(0))
    assert np.array_equal(moved.shape, batch.shape)
    assert np.array_equal(moved.color, batch.color)
    assert 0.4 < (moved.ground != batch.ground).mean() < 0.9
    for scene in moved:
        assert {thing.color for thing in scene.objects} <= colors_on(scene.ground)
    there = batch.shape >= 0
    changed = ((moved.x != batch.x) | (moved.y != batch.y)).any(1)
    assert 0.3 < changed.mean() < 0.6
    assert (moved.x[there] > 0).all()
    assert (moved.x[there] < 1).all()
    assert not moved.x[~there].any()


def test_batches_of_mini_clip_hold_scenes_that_are_alike_and_each_once():
    size = 8
    plain = caption_scenes(0, size * BLOCK, 0)
    parts = [alike(number, size, 0) for number in range(BLOCK)]
    assert sorted(text for part in parts for text in part.texts) == sorted(plain.texts)
    for part in parts:
        where = [list(plain.scenes).index(scene) for scene in part.scenes]
        assert [plain.texts[i] for i in where] == part.texts
        assert len(set(part.scenes.ground.tolist())) <= 2
    assert len(set(plain.scenes.ground[:size].tolist())) > 2


def test_balanced_assignments_use_all_prototypes_alike():
    found = balanced(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), rounds=50)
    torch.testing.assert_close(found.sum(1), torch.ones(64))
    torch.testing.assert_close(found.sum(0), torch.full((8,), 8.0), atol=1e-3, rtol=1e-3)


def test_tokens_of_an_image_name_its_nearest_patches():
    model = SceneVQ()
    generator = torch.Generator().manual_seed(0)
    model.codes.data.uniform_(0, 1, generator=generator)
    tokens = torch.randint(CODES, (3, TOKENS), generator=generator)
    images = model.decode(tokens)
    assert images.shape == (3, 3, 32, 32)
    assert torch.equal(model.tokens(images), tokens)
    assert torch.equal(model.tokens((images + 0.05).clamp(0, 1)), tokens)
    assert torch.equal(images[0, :, :8, 8:16].flatten(), model.codes[tokens[0, 1]].detach())


def test_the_rate_rises_then_falls_to_nothing():
    schedule = Schedule(steps=100, batch=1, rate=1.0, warmup=0.1)
    rates = [learning_rate(schedule, i) for i in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == 1.0
    assert rates[-1] < 1e-3


# ---------------------------------------------------------------------------- the loop


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_on_record(name, short):
    """The committed curves are of one machine: seed 0, six steps of eight scenes."""
    expected = json.loads(CURVES.read_text())[name]
    np.testing.assert_allclose(short[name].losses, expected, rtol=TOLERANCE)


@pytest.mark.parametrize("name", ["mini-t5", "mini-gemma", "mini-blip3o"])
def test_the_loss_falls(name, short):
    losses = short[name].losses
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_stages_are_written_with_what_made_them(name, short):
    for folder in short[name].folders:
        about = read_manifest(shipped(folder))["about"]
        assert (about["name"], about["seed"], about["schedule"]["steps"]) == (name, 0, STEPS)
        assert about["steps"] == {"final": 6, "20pct": 2, "3pct": 1}[about["stage"]]
        assert about["curve"][-1] == [about["steps"], about["loss"]]
        assert "license: apache-2.0" in (folder / "README.md").read_text()


def test_all_encoders_read_as_many_texts_and_are_as_large():
    recipes = [zoo_recipe(name) for name in FAMILIES]
    assert len({r.schedule.steps * r.schedule.batch for r in recipes}) == 1


def test_a_stopped_training_goes_on_with_the_same_numbers(tmp_path, short, monkeypatch):
    step = loop._step

    def stops(recipe, model, optimizer, schedule, at):
        if at.number == 4:
            raise KeyboardInterrupt
        return step(recipe, model, optimizer, schedule, at)

    monkeypatch.setattr(loop, "_step", stops)
    with pytest.raises(KeyboardInterrupt):
        train_member("mini-gemma", tmp_path, steps=STEPS, batch=BATCH)
    assert not (tmp_path / "mini-gemma").exists()
    with pytest.raises(UsageError, match="another seed"):
        train_member("mini-gemma", tmp_path, steps=STEPS, batch=BATCH, seed=1)
    monkeypatch.setattr(loop, "_step", step)
    done = train_member("mini-gemma", tmp_path, steps=STEPS, batch=BATCH)
    # the same to a rounding: matrix products differ in the last bit by where memory lies
    np.testing.assert_allclose(done.losses, short["mini-gemma"].losses, rtol=1e-5)
    # finished: nothing is trained
    monkeypatch.setattr(loop, "_step", stops)
    assert train_member("mini-gemma", tmp_path, steps=STEPS, batch=BATCH).folders == done.folders
    with pytest.raises(UsageError, match="another seed or number of steps"):
        train_member("mini-gemma", tmp_path, steps=STEPS + 1, batch=BATCH)


def test_each_stage_of_a_training_of_one_step_is_written(tmp_path):
    done = train_member("mini-gemma", tmp_path, steps=1, batch=BATCH)
    assert len(done.folders) == 3
    for folder in done.folders:
        assert (folder / "model.safetensors").is_file()


def test_an_unknown_member_is_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="mini-clip"):
        train_member("mini-clap", tmp_path)
    assert set(STAGES) == {"final", "20pct", "3pct"}


def test_rounding_to_bfloat16_changes_nothing_that_counts(tmp_path):
    """Weights in memory stay as they are; states read from the rounded file point the same way."""
    from transformers import Gemma2ForCausalLM

    recipe = zoo_recipe("mini-gemma")
    torch.manual_seed(0)
    model = recipe.build().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe.save(model, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    read = Gemma2ForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    ids = torch.tensor(token_ids(recipe.tokenizer, caption_scenes(3, 1, 0).texts))
    with torch.no_grad():
        exact, rounded = (m.model(input_ids=ids).last_hidden_state[0] for m in (model, read))
    assert torch.cosine_similarity(exact, rounded, dim=1).min() > 0.9995
