"""The shape of the project: imports point one way, nothing heavy at load, the wheel is whole."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"encbench": "encbench", "encbench.probes": "probes", "encbench.reports": "reports"}
"""Packages by import name and the folder each is installed from."""

# What each part may import of this project. Parts are packages, or modules of encbench.
BASE = {"types", "errors"}
STORE = BASE | {"files", "schema", "specs", "progress", "registry", "shipped", "distributed"}
STORE |= {"device", "group", "lock", "listing", "images"}
ENGINE = STORE | {"retrieval", "vision", "data", "store", "encoders", "encode", "intervals"}
ENGINE |= {"shards"}
RUN = {"config", "context", "media", "ranking", "records", "rules", "sentences"}
ALLOWED = {
    "encbench.types": set(),
    "encbench.errors": set(),
    "encbench.registry": {"errors"},
    "encbench.progress": set(),
    "encbench.files": {"errors"},
    "encbench.schema": {"errors", "files"},
    "encbench.listing": {"errors"},
    "encbench.images": BASE | {"files"},
    "encbench.specs": {"errors", "files"},
    "encbench.store": STORE,
    "encbench.retrieval": BASE | {"retrieval"},
    "encbench.intervals": BASE | {"retrieval"},
    "encbench.data": STORE | {"data", "store"},  # an index of large files is kept there
    "encbench.encoders": STORE | {"data", "encoders", "zoo"},
    "encbench.vision": STORE | {"data", "encoders", "vision", "zoo"},
    "encbench.encode": ENGINE,
    "encbench.shards": STORE | {"encoders", "store"},
    "encbench.records": BASE | {"files", "schema"},
    "encbench.ranking": BASE | {"records", "intervals", "rules", "sentences", "specs"},
    "encbench.sentences": BASE | {"records"},
    "encbench.options": {"errors", "files", "schema"},
    "encbench.config": BASE | {"data", "device", "files", "options", "schema"},
    "encbench.presets": {"errors"},
    "encbench.media": STORE | {"vision"},
    "encbench.doctor": ENGINE,
    "encbench.checkpoint": BASE | {"files", "schema"},
    "encbench.training": {"errors"},
    "encbench.shipped": BASE | {"files", "schema"},
    "encbench.distributed": BASE | {"progress", "device", "group"},
    "encbench.group": {"device", "errors"},
    "encbench.device": {"errors"},
    "encbench.lock": {"errors", "files", "schema"},
    "encbench.metrics": STORE
    | {"data", "encoders", "vision", "intervals", "metrics", "shipped", "training", "checkpoint"}
    | {"config", "records", "pages"},
    "encbench.study": BASE | {"files", "images", "metrics", "pages", "schema"},
    "encbench.flow": ENGINE
    | {"flow", "distributed", "shipped", "options", "presets", "checkpoint", "training"},
    "encbench.zoo": ENGINE | {"zoo", "shipped", "checkpoint", "training"},
    "encbench.probes": {
        "types",
        "errors",
        "retrieval",
        "vision",
        "data",
        "store",
        "encoders",
        "intervals",
        "flow",  # the reader has the generator's own connector
    },
    "encbench.board": BASE | {"files", "pages", "ranking", "records"},
    "encbench.pages": set(),
    "encbench.share": BASE | {"data", "files", "records"},
    "encbench.parquet": BASE | {"files", "records"},
    "encbench.replacement": BASE | {"files", "ranking", "records", "rules"},
    "encbench.rules": BASE | {"files", "records", "registry", "schema", "sentences"},
    "encbench.validate": ENGINE | {"confirm", "records", "rules"},
    "encbench.context": ENGINE | {"config"},
    "encbench.bench": ENGINE | RUN,
    "encbench.pipeline": ENGINE | RUN | {"bench", "zoo"},
    "encbench.estimate": ENGINE | {"bench", "config", "context", "pipeline", "presets", "records"},
    "encbench.confirm": ENGINE | RUN | {"confirm", "flow", "metrics", "options"},
    "encbench.commands": ENGINE
    | RUN
    | {
        "cli",  # docs/options.md is made of all commands
        "confirm",
        "flow",
        "metrics",
        "study",
        "zoo",
        "options",
        "presets",
        "pipeline",
        "estimate",
        "board",
        "parquet",
        "doctor",
        "replacement",
        "share",
        "validate",
    },
    "encbench.cli": {"errors", "distributed"},  # commands are loaded by name
    "encbench.__main__": {"cli"},
    "encbench.api": ENGINE
    | RUN
    | {"confirm", "flow", "metrics", "options", "pipeline", "presets", "validate"},
    "encbench.__init__": {"api"},
    "encbench.reports": BASE
    | {"records", "files", "pages", "schema", "registry", "sentences", "validate", "progress"},
}


def modules() -> list[Path]:
    return [p for folder in FOLDERS.values() for p in (ROOT / folder).rglob("*.py")]


def inside(path: Path) -> tuple[str, ...]:
    """A module's import name in parts: probes/ and reports/ are imported as encbench.*"""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts if parts[0] == "encbench" else ("encbench", *parts)


def part(path: Path) -> str:
    return ".".join(inside(path)[:2])


def imported(path: Path) -> set[str]:
    """Absolute names of what a file imports, anywhere in it."""
    package = inside(path)[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found |= {name} | {f"{name}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    here = part(path)
    names = {name for name in imported(path) if name.startswith("encbench.")}
    targets = {name.split(".")[1] for name in names}
    parts = {part(module).split(".")[1] for module in modules()}
    assert here in ALLOWED, f"{here} is new: say in tests/test_architecture.py what it may import"
    refused = (targets & parts) - ALLOWED[here] - {here.split(".")[1]}
    assert not refused, f"{path} imports {refused}"


PARSERS = {
    "json.load", "json.loads", "tomllib.load", "tomllib.loads", "csv.reader", "csv.DictReader",
    "csv.writer", "csv.DictWriter", "pickle.load", "pickle.loads", "marshal.loads", "yaml.load",
    "yaml.safe_load", "torch.load", "numpy.load", "np.load",
}  # fmt: skip
METHODS = {"read_text", "splitlines", "readlines", "readline", "to_csv", "to_json"}
EXCEPT = {
    ("encbench/data/tars.py", "open"): "a tar, of which bytes are read",
    ("encbench/encoders/queries.py", "load"): "a published file, of which only tensors are read",
    ("encbench/errors.py", "splitlines"): "the first line of a library's message, to be shown",
    ("encbench/lock.py", "read_text"): "the kernel's own file in /proc",
    ("encbench/metrics/geneval/gallery.py", "read_text"): "a template that is installed with us",
    ("encbench/metrics/fid.py", "load"): "published statistics: arrays, never pickled objects",
    ("encbench/metrics/similarity.py", "load"): "published weights by their hash, weights only",
    ("encbench/study/page.py", "read_text"): "a template that is installed with us",
    ("encbench/records.py", "to_csv"): "a table of pandas, whose texts are escaped before",
    ("encbench/records.py", "read_csv"): "a table of pandas, every digit of its numbers",
}


def reads_and_writes(path: Path) -> set[str]:
    """The calls in a module that parse text, cut it into lines, or open a file as text."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        if name in PARSERS or (last in METHODS and "." in name) or name == "pd.read_csv":
            found.add(last)
        opens = last == "open" and name.split(".")[0] not in ("os", "Image", "source")
        if opens and not re.search(r"'[rwax]?b'|'[rwax]\+?b'", ast.unparse(node)):
            found.add("open")
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_text_is_read_parsed_and_written_in_one_place(path):
    """One parser for JSON, TOML and CSV, one rule for the ends of lines, one writer of CSV."""
    name = path.relative_to(ROOT).as_posix()
    if name != "encbench/files.py":
        assert {call for call in reads_and_writes(path) if (name, call) not in EXCEPT} == set()


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ("json.loads(text)", "loads"),
        ("json.load(file)", "load"),
        ("text.splitlines()", "splitlines"),
        ("open(name)", "open"),
        ("path.open()", "open"),
        ("path.open('w', encoding='utf-8')", "open"),
        ("folder.joinpath('a').read_text('utf-8')", "read_text"),
        ("csv.writer(file).writerow(row)", "writer"),
        ("table.to_csv(path)", "to_csv"),
        ("pd.read_csv(path)", "read_csv"),
        ("torch.load(path)", "load"),
    ],
)
def test_each_other_way_to_read_is_seen(tmp_path, line, call):
    module = tmp_path / "module.py"
    module.write_text(line)
    assert reads_and_writes(module) == {call}
    module.write_text("path.open('rb'); read_json(path); os.open(path, os.O_RDONLY)")
    assert reads_and_writes(module) == set()


def test_folders_at_the_top_import_as_encbench_only(tmp_path):
    """Every module of encbench is loaded once, under its one name, wherever Python starts; a
    folder of the user's that is called reports or probes is not taken for ours."""
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "__init__.py").write_text("raise SystemExit('the user's own')")
    code = (
        "import importlib, pkgutil, sys, encbench\n"
        "from encbench import probes, reports\n"
        "for package in (encbench, probes, reports):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not module.name.endswith('__main__'):\n"
        "            importlib.import_module(module.name)\n"
        "files = [m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)]\n"
        f"ours = [f for f in files if f.startswith({str(ROOT)!r} + '/') and '.venv' not in f]\n"
        "assert len(ours) == len(set(ours)) > 100, len(ours)\n"
        "print({'probes', 'reports'} & set(sys.modules))"
    )
    for start in (ROOT, tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=start, capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == "set()", done.stderr[-2000:]


@pytest.mark.parametrize("statement", ["import encbench", "import encbench.cli"])
def test_import_loads_no_model_library(statement):
    code = f"import sys; {statement}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


HEAVY = ("torch", "transformers", "numpy", "pandas", "faiss", "open_clip", "timm", "matplotlib")


def test_help_loads_no_model_library():
    code = (
        "import sys\nfrom encbench.cli import main\ntry:\n    main(['--help'])\n"
        f"except SystemExit:\n    print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "run" in done.stdout


@pytest.mark.slow
def test_the_wheel_holds_what_it_should(tmp_path):
    """Built from a copy of the tree, without the network: every module and template, no tests."""
    pytest.importorskip("build")
    source = tmp_path / "source"
    for folder in FOLDERS.values():
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in modules():
        assert "/".join(inside(path)) + ".py" in names
    for package, pattern in (
        ("encbench", "templates/*"),
        ("encbench.reports", "templates/*"),
        ("encbench.metrics.geneval", "templates/*"),
        ("encbench.metrics.geneval", "weights/**/*"),
        ("encbench.confirm", "weights/**/*"),
        ("encbench.study", "templates/*"),
        ("encbench.zoo", "weights/**/*"),
    ):
        folder = FOLDERS.get(package) or package.replace(".", "/")
        shipped = [p for p in (ROOT / folder).glob(pattern) if p.is_file()]
        assert shipped
        for path in shipped:
            kept = path.relative_to(ROOT / folder).as_posix()
            assert f"{package.replace('.', '/')}/{kept}" in names
    assert "encbench/py.typed" in names
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"encbench"}

    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = (
        "import encbench\n"
        "from encbench import registry\n"
        "from encbench.reports.render import make_environment\n"
        "from encbench.zoo.table import zoo_rows\n"
        "for kind in registry.GROUPS:\n"
        "    for name in registry.names(kind):\n"
        "        registry.get(kind, name)\n"
        "made = make_environment(autoescape=True)\n"
        "made.loader.get_source(made, 'report.html')\n"
        "print(encbench.__file__, len(zoo_rows()), [r.problem for r in zoo_rows() if r.problem])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "installed", capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    file, models, problems = done.stdout.split(maxsplit=2)
    assert Path(file) == tmp_path / "installed" / "encbench" / "__init__.py", done.stderr[-2000:]
    assert (int(models) > 10, problems.strip()) == (True, "[]")


def test_every_entry_point_is_there():
    from encbench import registry

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    for kind, group in registry.GROUPS.items():
        assert set(declared[group]) <= set(registry.names(kind))
        for name in declared[group]:
            assert registry.get(kind, name) is not None
