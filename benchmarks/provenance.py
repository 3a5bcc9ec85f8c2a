"""Where a benchmark's numbers come from; written beside them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from encbench.files import write_json
from encbench.records import clean, provenance

RESULTS = Path(__file__).parent / "results"


def keep(name: str, result: dict[str, Any]) -> Path:
    """Write a result under ``benchmarks/results`` with provenance, and print it."""
    path = RESULTS / f"{name}.json"
    body = {"command": " ".join(["python", *sys.argv]), **result, "provenance": provenance()}
    write_json(path, clean(body))
    print(json.dumps(clean(result), indent=1))
    print(f"written to {path}")
    return path
