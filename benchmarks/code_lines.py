"""Count lines of code in encbench/, probes/ and reports/: no docstrings, comments or blank lines.

python benchmarks/code_lines.py [REVISION]

With a git revision, its files are counted and not the working tree's. 5dde682, the commit before
the seams, has 22,963 lines.
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("encbench", "probes", "reports")
BLANK = (
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
)  # fmt: skip


def count_code(source: str) -> int:
    """Lines that hold a token of code."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case (
                ast.Module(body=[first, *_])
                | ast.ClassDef(body=[first, *_])
                | ast.FunctionDef(body=[first, *_])
                | ast.AsyncFunctionDef(body=[first, *_])
            ) if ast.get_docstring(node, clean=False) is not None:
                docstrings |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in BLANK:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def read_sources(revision: str | None) -> dict[str, str]:
    """Path -> text of every module, in the working tree or in a commit."""
    if revision is None:
        paths = [p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))]
        return {p.relative_to(ROOT).as_posix(): p.read_text("utf-8") for p in paths}

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True)
        return done.stdout.decode()

    names = git("ls-tree", "-r", "--name-only", revision, *FOLDERS).splitlines()
    return {n: git("show", f"{revision}:{n}") for n in names if n.endswith(".py")}


def main() -> None:
    sources = read_sources(sys.argv[1] if len(sys.argv) > 1 else None)
    counts: Counter[str] = Counter()
    for name, source in sources.items():
        counts[str(Path(name).parent)] += count_code(source)
    for folder, count in sorted(counts.items()):
        print(f"{folder:24s} {count:7,d}")
    print(f"{'total':24s} {sum(counts.values()):7,d}")


if __name__ == "__main__":
    main()
