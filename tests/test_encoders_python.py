"""Custom encoders: found in files and modules, made in any of three ways, and always checked."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from encbench.encoders import checks, load_encoder
from encbench.encoders.checks import assert_conforms
from encbench.errors import EncbenchError, EncoderOutputError, ModelError, UsageError
from encbench.types import JointEncoder

SOURCE = """
import torch
from encbench.types import EncoderCard, TextFeatures

class Fixed:
    card = EncoderCard("mine", "mine", "mine", "mine", dim=3, max_tokens=None, license="mit")

    def encode(self, prompts):
        n = len(prompts)
        tokens = torch.ones(n, 1, 3) * self.value()
        return TextFeatures(tokens, torch.ones(n, 1).bool(), torch.zeros(n).bool(), tokens[:, 0])

    def value(self):
        return 1.0

class OnDevice(Fixed):
    def __init__(self, device):
        self.device = device

    def value(self):
        assert isinstance(self.device, torch.device)
        return 2.0

class Joint(Fixed):
    def encode_images(self, images):
        return torch.zeros(len(images) - self.missing, 3)
    missing = 0

class Lossy(Joint):
    missing = 1

class Nan(Fixed):
    def value(self):
        return float("nan")

class Narrow(Fixed):
    card = EncoderCard("mine", "mine", "mine", "mine", dim=4, max_tokens=None)

class Crash(Fixed):
    def value(self):
        raise RuntimeError("no such luck\\nsecond line")

class Wrong(Fixed):
    def encode(self, prompts):
        return [1.0 for _ in prompts]

class NoCard:
    card = "me"
    def encode(self, prompts): ...

class Broken(Fixed):
    def __init__(self):
        raise OSError("weights not found")

def make():
    return Fixed()

def make_nothing():
    return None

instance = Fixed()
number = 7

class Holder:
    inner = Fixed
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize("attribute", ["Fixed", "instance", "make", "Holder.inner"])
def test_class_instance_and_factory(file: Path, attribute: str) -> None:
    encoder = load_encoder(f"python:{file}:{attribute}", "cpu")
    assert torch.equal(encoder.encode(["a", "b"]).tokens, torch.ones(2, 1, 3))
    assert_conforms(encoder)
    assert not isinstance(encoder, JointEncoder)


def test_card_names_spec_and_source_and_pins_the_file(file: Path) -> None:
    spec = f"python:{file}:Fixed"
    card = load_encoder(f"{spec}?pool=own", "cpu").card
    assert (card.spec, card.family, card.source) == (
        f"{spec}?pool=own",
        "python",
        f"{file}:Fixed",
    )
    assert (card.pooling, card.dim, card.license) == ("own", 3, "mit")
    content = hashlib.sha256(file.read_bytes()).hexdigest()
    assert card.revision == hashlib.sha256(f"mine.py\0{content}\n".encode()).hexdigest()
    assert load_encoder(f"{spec}@{card.revision[:10]}", "cpu").card.revision == card.revision
    file.write_text(SOURCE + "\n")
    assert load_encoder(spec, "cpu").card.revision != card.revision
    with pytest.raises(ModelError, match="content hash"):
        load_encoder(f"{spec}@{card.revision[:10]}", "cpu")


def test_device_is_passed_where_it_is_wanted(file: Path) -> None:
    assert load_encoder(f"python:{file}:OnDevice", "cpu").encode(["a"]).tokens[0, 0, 0] == 2


def test_module(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = file.parent / "encbench_test_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "inside.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(file.parent))
    encoder = load_encoder("python:encbench_test_package.inside:Fixed", "cpu")
    assert encoder.encode(["a"]).tokens.shape == (1, 1, 3)


def test_joint_space(file: Path) -> None:
    encoder = load_encoder(f"python:{file}:Joint", "cpu")
    assert isinstance(encoder, JointEncoder)
    images = [Image.new("RGB", (4, 4))] * 2
    assert encoder.encode_images(images).shape == (2, 3)
    lossy = load_encoder(f"python:{file}:Lossy", "cpu")
    assert isinstance(lossy, JointEncoder)
    with pytest.raises(EncoderOutputError, match=r"Lossy: encode_images\(\) must .* 2 images"):
        lossy.encode_images(images)


@pytest.mark.parametrize(
    ("attribute", "says"),
    [
        ("Nan", "NaN or infinite tokens for 2 of 2 prompts"),
        ("Narrow", "tokens are 3 wide, but its card says dim=4"),
        (
            "Crash",
            r"encode\(\) of python.* failed: RuntimeError: no such luck; see where: python -m",
        ),
        ("Wrong", r"encode\(\) returned a list; it must return TextFeatures"),
    ],
)
def test_unsound_output_names_the_encoder(file: Path, attribute: str, says: str) -> None:
    encoder = load_encoder(f"python:{file}:{attribute}", "cpu")
    with pytest.raises(EncoderOutputError, match=says) as caught:
        encoder.encode(["a", "b"])
    assert f"python:{file}:{attribute}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_traceback_on_request(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checks.main([f"python:{file}:Crash", "--traceback"]) == 1
    shown = capsys.readouterr().err
    assert "no such luck\nsecond line" in shown
    assert f'File "{file}", line' in shown


@pytest.mark.parametrize(
    ("source", "says", "kind"),
    [
        ("{file}:Missing", "has no attribute 'Missing'", ModelError),
        ("{file}:number", "is a int; it must be a TextEncoder", ModelError),
        ("{file}:make_nothing", "gave a NoneType without card", EncoderOutputError),
        ("{file}:NoCard", "without card", EncoderOutputError),
        ("{file}:Broken", "making the encoder failed: OSError: weights not found", ModelError),
        ("{file}:Fixed?layer=2", "takes no option 'layer'", UsageError),
        ("{file}:Fixed?pool=mean-padded", "padding is the custom encoder's own", UsageError),
        ("{folder}/none.py:Fixed", "there is no file", ModelError),
        ("{folder}/bad.py:Fixed", r"importing .*bad\.py failed: SyntaxError", ModelError),
        ("no_such_module_at_all:Fixed", "there is no module no_such_module_at_all", ModelError),
        (
            "no_such.module:Fixed",
            "finding the module no_such.module failed: ModuleNotFoundError",
            ModelError,
        ),
        ("only_a_name", "must be python:module:attribute", UsageError),
    ],
)
def test_bad_specs(file: Path, source: str, says: str, kind: type[EncbenchError]) -> None:
    (file.parent / "bad.py").write_text("def (:\n")
    with pytest.raises(kind, match=says) as caught:
        load_encoder("python:" + source.format(file=file, folder=file.parent), "cpu")
    assert "\n" not in str(caught.value)


# --------------------------------------------------------- what foreign code may raise or call

RAISED = (
    "RuntimeError('index 66 is out of bounds')",
    "IndexError('list index out of range')",
    "OverflowError('int too big to convert')",
    "AssertionError()",
    "KeyError('x')",
    "RecursionError('deep')",
    "MemoryError()",
    "SystemExit(0)",
    "SystemExit('bye')",
    "BaseException('of a test library')",
    "ValueError('two\\nlines')",
    "ValueError('lone \\ud800 surrogate')",
)
FAILING = """
import torch
from encbench.types import EncoderCard, TextFeatures
{top}
class Mine:
    def __init__(self):
        {init}
        self.card = EncoderCard('x', 'x', 'x', 'x', dim=2, max_tokens=None)
    def encode(self, prompts):
        {encode}
        n = len(prompts)
        return TextFeatures(
            torch.ones(n, 1, 2), torch.ones(n, 1).bool(), torch.zeros(n).bool()
        )
"""


@pytest.mark.parametrize("place", ["top", "init", "encode"])
@pytest.mark.parametrize("raised", RAISED)
def test_whatever_foreign_code_raises_is_one_line(
    tmp_path: Path, raised: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {"top": "", "init": "pass", "encode": "pass"} | {place: f"raise {raised}"}
    (tmp_path / "mine.py").write_text(FAILING.format(**parts))
    text = f"python:{tmp_path / 'mine.py'}:Mine"
    kind = raised.partition("(")[0].replace("SystemExit", r"called sys\.exit")
    with pytest.raises(EncbenchError, match=kind) as caught:
        load_encoder(text, "cpu").encode(["a"])
    assert "\n" not in str(caught.value)
    str(caught.value).encode()
    assert checks.main([text]) == 1
    shown = capsys.readouterr()
    assert re.search(kind, shown.out + shown.err)


def test_ctrl_c_in_foreign_code_stops(tmp_path: Path) -> None:
    parts = {"top": "", "init": "pass", "encode": "raise KeyboardInterrupt"}
    (tmp_path / "mine.py").write_text(FAILING.format(**parts))
    with pytest.raises(KeyboardInterrupt):
        load_encoder(f"python:{tmp_path / 'mine.py'}:Mine", "cpu").encode(["a"])
