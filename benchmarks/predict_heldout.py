"""Predict held-out encoders: the value of every ranking rule, and of rival probes, as one file.

    cd FOLDER_OF_ENCODERS
    python predict_heldout.py --encoders heldout.txt --out predictions-1.json

The file is committed before any of these encoders is trained. It names the rules with their
versions, when and with which git commit each score was measured, and the sha256 of its content.
A file that is there is completed, never changed: scores that it holds stay as they are.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from encbench.config import RunConfig
from encbench.context import Context, Data, load_images, load_run_data
from encbench.encode import StoredEncoder
from encbench.encoders import EncoderSpec
from encbench.errors import EncbenchError
from encbench.files import digest, write_json
from encbench.probes.ablation import AblationProbe
from encbench.probes.decodability import DecodabilityProbe
from encbench.probes.minimal_pairs import MinimalPairsProbe
from encbench.probes.reader import (
    ENTROPY,
    EVERYTHING,
    READABLE_ENTROPY,
    STEPS,
    ReaderProbe,
)
from encbench.probes.retrieval import RetrievalProbe
from encbench.probes.statements import HELD_OUT
from encbench.probes.trained_pooling import TrainedPoolingProbe
from encbench.rules import RankingRule, load_rules
from encbench.store import Store

CPU = torch.device("cpu")
BY_STEPS = tuple(f"{EVERYTHING}@{steps}" for steps in STEPS)
PROBES = {
    "reader": (
        ReaderProbe,
        (EVERYTHING, "other-words", "held-out", "bits", *BY_STEPS, ENTROPY, READABLE_ENTROPY),
    ),
    "trained-pooling": (TrainedPoolingProbe, ("statements", "other-words")),
    "decodability": (DecodabilityProbe, ("tokens", "pooled")),
    "minimal-pairs": (MinimalPairsProbe, ("scaled",)),
    "retrieval": (RetrievalProbe, ("scaled@2", "published@2")),
    "ablation": (AblationProbe, ("calibrated", "published")),
}
RANK = "effective-rank"  # exp of the reader's spectral entropy; in rounds 1, 2 its own probe


def version_3(score: Callable[[str, str], float]) -> float:
    """Of the rule reader; version 2 was the same with everything alone as the share."""
    share = min(score("reader", EVERYTHING), score("reader", HELD_OUT))
    return (min(max(share, 0.1), 0.6) - 0.1) * score("reader", ENTROPY)


RIVALS: dict[str, Callable[[Callable[[str, str], float]], float]] = {
    "reader, version 1": lambda score: score("reader", EVERYTHING),
    "reader, version 3": version_3,
    "reader x log effective rank": lambda score: (
        score("reader", EVERYTHING) * math.log(score(RANK, "mean tokens"))
    ),
    "reader-other-words, version 1": lambda score: (
        score("reader", EVERYTHING) + 2 * score("reader", "other-words")
    ),
}
"""Combinations that no ranking uses; predicted with the rules, and judged beside them."""


def measure(probe: str, context: Context) -> dict[str, list[float]]:
    """Value, low and high by score."""
    kind, names = PROBES[probe]
    found = kind().run(context, seed=0).scores
    return {name: [found[name].value, found[name].low, found[name].high] for name in names}


def context_maker(spec: str, store: Path) -> Callable[[str], Context]:
    """The encoder with the data that a probe needs: images for retrieval only."""
    encoder = StoredEncoder(EncoderSpec.parse(spec), Store(store), CPU)

    def make(probe: str) -> Context:
        if probe not in ("retrieval", "ablation"):
            return Context(encoder, "mean", Data(None, None), None, {})
        config = RunConfig(device="cpu", store=store)
        data = load_run_data(config)
        images = load_images(config, data, Store(store), CPU) if probe == "retrieval" else None
        return Context(encoder, "mean", data, images, config.probe_options(probe))

    return make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoders", type=Path, required=True, help="a spec a line")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--store", type=Path, default=Path("runs/store"))
    parser.add_argument("--probes", nargs="+", default=[*PROBES])
    args = parser.parse_args()
    lines = args.encoders.read_text("utf-8").splitlines()
    specs = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    commit = current_commit()
    rows = json.loads(args.out.read_text("utf-8"))["encoders"] if args.out.exists() else {}
    for probe in args.probes:
        for spec in specs:
            row = rows.setdefault(spec, {"revision": "", "scores": {}, "rules": {}})
            if probe in row["scores"]:
                continue
            try:
                context = context_maker(spec, args.store)(probe)
                found = measure(probe, context)
            except EncbenchError as error:
                print(f"{spec}: no {probe}: {error}", flush=True)
                continue
            made = {"measured": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit}
            row["scores"][probe] = {**made, **found}
            if probe == "reader":
                rank = [math.exp(value) for value in found[ENTROPY]]
                row["scores"][RANK] = {**made, "mean tokens": rank}
            row["revision"] = context.encoder.resolved.revision
            row["rules"] |= values(row["scores"])
            write(args.out, rows)
            print(f"{spec}: {probe} {row['scores'][probe]}", flush=True)


def values(scores: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """The value of every rule and rival, of those whose scores are there."""
    found = {}
    for name, rule in [*load_rules().items(), *RIVALS.items()]:
        value = rule.value if isinstance(rule, RankingRule) else rule
        try:
            found[name] = value(lambda probe, score: scores[probe][score][0])
        except KeyError:
            continue
    return found


def current_commit() -> str:
    """Of the code that measures, as it was when it was loaded."""
    command = ["git", "rev-parse", "HEAD"]
    here = Path(__file__).parent
    made = subprocess.run(command, capture_output=True, text=True, check=True, cwd=here)
    return made.stdout.strip()


def write(path: Path, rows: dict[str, dict]) -> None:
    content = {
        "rules": {
            name: {**asdict(rule), "sentence": rule.sentence} for name, rule in load_rules().items()
        },
        "encoders": rows,
    }
    written = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(path, {**content, "written": written, "hash": digest(content)})


if __name__ == "__main__":
    main()
