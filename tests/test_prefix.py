"""States of shortened prompts, taken from the whole prompt's: the same vectors, fewer passes."""

import decoder_checkpoints
import pytest
import torch
from checkpoints import CORPUS

from encbench.context import Context, Data
from encbench.encode import StoredEncoder
from encbench.encoders import EncoderSpec, load_encoder
from encbench.encoders.prefix import find, hosts_by_text, reuses
from encbench.probes.ablation import AblationProbe
from encbench.store import Store
from encbench.types import Prompt, PromptSet

CPU = torch.device("cpu")
WORDS = CORPUS[0].split() + CORPUS[1].split()[:4]
PROMPTS = [" ".join([f"{i}th", *WORDS[i % 5 :], *WORDS[: i % 7]]) + "." for i in range(24)]
SHORT = [" ".join(p.split()[: len(p.split()) * n // 4]) for n in (1, 2, 3) for p in PROMPTS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "causal": decoder_checkpoints.qwen3(root / "qwen"),
        "gemma": decoder_checkpoints.gemma(root / "gemma"),  # sliding windows of 16
    }


def counted(encoder) -> list[int]:
    """Lengths of all sequences that go through the model from now on."""
    seen, states = [], encoder.states

    def forward(ids, mask):
        seen.extend(mask.sum(1).tolist())
        return states(ids, mask)

    encoder.states = forward
    return seen


@pytest.mark.parametrize(
    ("family", "options", "pool", "all_reused"),
    [
        ("causal", "", "mean", True),
        ("causal", "layer=normavg", "last", True),
        ("causal", "recipe=blip3o", "mean", False),  # the template goes on after the prompt
        ("gemma", "", "max", True),
        ("gemma", "recipe=sana", "mean", True),  # an instruction before it; positions left out
        ("gemma", "max_length=9", "mean", False),  # whole prompts are cut, some beginnings too
    ],
)
def test_vectors_are_those_without_reuse(folders, tmp_path, family, options, pool, all_reused):
    spec = EncoderSpec.parse(f"{family}:{folders[family]}" + (f"?{options}" if options else ""))
    plain = StoredEncoder(spec, Store(tmp_path / "plain"), CPU, (pool,))
    stored = StoredEncoder(spec, Store(tmp_path / "store"), CPU, (pool,))
    assert stored.about.causal
    stored.embed(["load it"], pool)
    seen = counted(stored.encoder)
    known = stored.beginnings(PROMPTS, SHORT, pool)
    short, whole = len(set(SHORT)), len(PROMPTS)
    assert set(known) == set(SHORT)
    assert (len(seen) == whole) if all_reused else (whole < len(seen) <= whole + short)
    count = len(seen)
    direct = plain.embed(SHORT, pool)
    torch.testing.assert_close(stored.embed(SHORT, pool, known), direct, atol=1e-5, rtol=1e-5)
    # the whole prompts were stored in the same pass, bit for bit as without
    assert torch.equal(stored.embed(PROMPTS, pool), plain.embed(PROMPTS, pool))
    again = StoredEncoder(spec, Store(tmp_path / "store"), CPU, (pool,))
    assert all(map(torch.equal, again.beginnings(PROMPTS, SHORT, pool).values(), known.values()))
    assert len(seen) == count
    assert again._encoder is None


def test_what_is_no_prefix_in_token_ids_is_not_reused(folders):
    encoder = load_encoder(f"causal:{folders['causal']}", "cpu")
    whole = ["a photo of a dog", "two  small cats", "the red bicycle"]
    short = ["a phot", "two small", "the red", "never seen", "a photo of"]
    assert hosts_by_text(whole, short) == [0, -1, 2, -1, 0]
    ids = [list(row) for row in encoder.tokenize([*whole, *short]).ids]
    found = find(encoder, whole, short)
    assert found.length == [len(row) for row in ids[3:]]
    for host, row in zip(found.host, ids[3:], strict=True):
        assert host < 0 or ids[host][: len(row)] == row
    assert found.host[0] == -1  # the cut falls inside a word, whose pieces are merged otherwise
    assert found.host[1:] == [-1, 2, -1, 0]


def test_an_end_of_text_token_is_no_prefix(folders):
    encoder = load_encoder(f"gemma:{folders['gemma']}", "cpu")
    tokenize, end = encoder.tokenize, 1

    def ended(prompts):
        made = tokenize(prompts)
        return made._replace(ids=[[*row, end] for row in made.ids])

    encoder.tokenize = ended
    assert set(find(encoder, PROMPTS, SHORT).host) == {-1}


def test_what_depends_on_the_length_is_not_reused(folders):
    encoder = load_encoder(f"causal:{folders['causal']}", "cpu")
    assert reuses(encoder)
    rope = encoder.model.config.rope_parameters
    for kind in ("dynamic", "longrope"):
        encoder.model.config.rope_parameters = {**rope, "rope_type": kind}
        assert not reuses(encoder)
        encoder.model.config.rope_parameters = {"full_attention": {**rope, "rope_type": kind}}
        assert not reuses(encoder)
    assert not reuses(load_encoder(f"causal:{folders['causal']}?pool=mean-padded", "cpu"))


def test_encoders_that_look_both_ways_reuse_nothing(minilm, tmp_path):
    stored = StoredEncoder(EncoderSpec.parse(f"st:{minilm}"), Store(tmp_path), CPU, ("mean",))
    assert stored.beginnings(PROMPTS, SHORT) is None


@pytest.mark.parametrize("wrap", ["{}", "control:shuffle({})"])
def test_the_ablation_probe_gives_the_same_scores(folders, tmp_path, monkeypatch, wrap):
    data = Data(None, PromptSet("made", "0", tuple(Prompt(p, p) for p in PROMPTS)))
    spec = EncoderSpec.parse(wrap.format(f"causal:{folders['causal']}"))
    options = {"draws": 2, "shares": (0.3, 0.5, 0.7)}
    found, passes = {}, {}
    for reuse in (False, True):
        if not reuse:
            monkeypatch.setattr(Context, "prepare", lambda self, whole, *shortened: None)
        stored = StoredEncoder(spec, Store(tmp_path / str(reuse)), CPU, ("mean",))
        stored.about  # noqa: B018  (loads the encoder)
        seen = counted(stored.encoder)
        context = Context(stored, "mean", data, None, options)
        found[reuse] = AblationProbe().run(context, seed=0)
        passes[reuse] = len(seen)
        monkeypatch.undo()
    assert passes[True] < passes[False] - 2 * len(PROMPTS)
    for name, score in found[False].scores.items():
        assert found[True].scores[name].value == pytest.approx(score.value, abs=1e-5), name
