"""Two encoders together: where each one's numbers are, scales, specs, pins."""

from pathlib import Path

import checkpoints
import pytest
import torch

from encbench.encode import StoredEncoder
from encbench.encoders import EncoderSpec, load_encoder
from encbench.encoders.checks import assert_conforms
from encbench.encoders.local import public_spec
from encbench.encoders.pair import TYPICAL
from encbench.encoders.pooling import pool
from encbench.errors import UsageError
from encbench.pipeline import names_of
from encbench.store import Store

PAIR = "pair:(zoo:mini-clip)+(zoo:mini-t5?layer=penultimate)"
TEXTS = ["a photo of a red circle left of a blue star", "", "two cats"]


def test_tokens_follow_each_other_in_columns_of_their_own():
    pair = load_encoder(PAIR, "cpu")
    clip, t5 = load_encoder("zoo:mini-clip", "cpu"), load_encoder("zoo:mini-t5?layer=penultimate")
    found, one, two = (encoder.encode(TEXTS) for encoder in (pair, clip, t5))
    assert pair.card.dim == 256
    assert pair.card.parameters == clip.card.parameters + t5.card.parameters
    (clip_scale, own), (t5_scale, _) = pair.scales
    for row in range(len(TEXTS)):
        a, b = one.tokens[row][one.mask[row]], two.tokens[row][two.mask[row]]
        tokens = found.tokens[row][found.mask[row]]
        assert len(tokens) == len(a) + len(b)
        torch.testing.assert_close(tokens[: len(a), :128], a * clip_scale)
        torch.testing.assert_close(tokens[len(a) :, 128:], b * t5_scale)
        assert not tokens[: len(a), 128:].any()
        assert not tokens[len(a) :, :128].any()
    torch.testing.assert_close(found.pooled[:, : one.pooled.shape[1]], one.pooled * own)
    pooled = pool(found, "mean")
    assert pooled.shape == (3, 256)
    typical = pair.encode(TYPICAL)
    for start in (0, 128):
        columns = typical.tokens[typical.mask][:, start : start + 128]
        norms = columns[columns.any(1)].norm(dim=1)
        assert norms.median() == pytest.approx(256**0.5, rel=1e-4)


def test_conformance(tmp_path):
    assert_conforms(load_encoder(PAIR, "cpu"))
    bert = checkpoints.sentence_bert(tmp_path / "bert", dense=True)
    assert_conforms(load_encoder(f"pair:(st:{bert})+(control:word-position?dim=16)", "cpu"))


def test_specs_are_read_and_written():
    for text in ("pair:zoo:mini-clip+zoo:mini-t5?layer=penultimate", PAIR):
        assert str(EncoderSpec.parse(text)) == PAIR
    nested = EncoderSpec.parse(f"pair:({PAIR})+(control:random)?pool=own")
    assert nested.pair is not None
    assert str(nested.pair[0]) == PAIR
    assert nested.pool == "own"
    assert EncoderSpec.parse(str(nested)) == nested
    assert names_of([EncoderSpec.parse(PAIR)]) == {EncoderSpec.parse(PAIR): "mini-clip+mini-t5"}
    for text, said in (
        ("pair:zoo:mini-clip", "does not hold two encoders"),
        ("pair:(zoo:mini-clip)+(zoo:mini-t5", "does not hold two encoders"),
        ("pair:zoo:mini-clip+mini-t5:", "is not an encoder|no source"),
    ):
        with pytest.raises(UsageError, match=said):
            EncoderSpec.parse(text)
    for text, said in (
        ("pair:(zoo:mini-clip?pool=own)+(zoo:mini-t5)", "belongs to the pair"),
        ("pair:(zoo:mini-clip)+(zoo:mini-t5)?max_length=9", "inside the brackets"),
        ("pair:(zoo:mini-clip)+(zoo:mini-t5)?pool=mean-padded", "no padding of its own"),
        ("pair:(zoo:mini-clip)+(zoo:mini-t5?mode=image)", "unknown option"),
    ):
        with pytest.raises(UsageError, match=said):
            load_encoder(text, "cpu")


def test_keys_and_public_names_hold_no_folder(tmp_path: Path):
    def stored(place: Path) -> StoredEncoder:
        spec = EncoderSpec.parse(f"pair:(st:{checkpoints.sentence_bert(place)})+(zoo:mini-t5)")
        return StoredEncoder(spec, Store(tmp_path / "store"), torch.device("cpu"))

    one, two = stored(tmp_path / "a" / "bert"), stored(tmp_path / "b" / "bert")
    assert one.identity == two.identity
    public = public_spec(one.spec, one.resolved.revision)
    assert str(tmp_path) not in str(public)
    assert str(public).startswith("pair:(st:bert)+(zoo:mini-t5)@")
    assert EncoderSpec.parse(str(public)) == public
