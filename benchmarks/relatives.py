"""Cheaper relatives of whitening, by the reader: centring, and principal components.

    cd FOLDER_OF_ENCODERS
    python relatives.py --encoders cure.txt --store runs/store

Each encoder of the cure is read with its features changed by statistics of the captions, then
brought to root mean square 1 in each dimension as always: ``rms`` (nothing else), ``centered`` (the
mean taken away), ``pca`` (the principal components that hold 99 % of the variance, the others
left out) and ``whitened``. Nothing is trained but the reader, and no choice was made by it: what
trainings on whitened features give stands in docs/cure.md. Writes results/relatives.json after
each encoder, goes on from what that holds, and writes the table into docs/cure.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from held_out import ROOT, between
from predict_heldout import context_maker
from provenance import RESULTS, keep

from encbench.errors import EncbenchError
from encbench.files import read_json
from encbench.flow.whitening import MOST_ROWS, Whitening, fit_whitening
from encbench.probes.reader import EVERYTHING, ReaderProbe

HELD = 0.99  # share of the variance


def center(rows: torch.Tensor, what: str) -> Whitening:
    return Whitening(rows.mean(0), torch.eye(rows.shape[1]))


def keep_components(rows: torch.Tensor, what: str) -> Whitening:
    """Principal components, the largest first, until they hold 99 % of the variance."""
    rows = rows[:: -(-len(rows) // MOST_ROWS)].double()
    variances, axes = torch.linalg.eigh(torch.cov(rows.T, correction=0))
    variances, axes = variances.flip(0), axes.flip(1)
    held = variances.cumsum(0) / variances.sum()
    count = int((held < HELD).sum()) + 1
    return Whitening(rows.mean(0).float(), axes[:, :count].float())


FITS = {"rms": None, "centered": center, "pca": keep_components, "whitened": fit_whitening}


def read(spec: str, store: Path, known: dict) -> dict:
    """Value, low and high of each change that is not known yet."""
    context = context_maker(spec, store)("reader")
    for name, fit in FITS.items():
        if name not in known:
            probe = ReaderProbe()
            probe.fit = fit
            score = probe.run(context, seed=0).scores[EVERYTHING]
            known[name] = [score.value, score.low, score.high]
            print(spec, name, known[name], flush=True)
    return known


def table(found: dict) -> str:
    head = "| encoder | " + " | ".join(FITS) + " |\n|---|" + "---|" * len(FITS) + "\n"
    rows = [
        f"| `{spec}` | "
        + " | ".join(f"{v:.2f} ({low:.2f} to {high:.2f})" for v, low, high in map(row.get, FITS))
        + " |\n"
        for spec, row in found.items()
        if len(row) == len(FITS)
    ]
    return head + "".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoders", type=Path, required=True, help="a spec and a remark a line")
    parser.add_argument("--store", type=Path, default=Path("runs/store"))
    given = parser.parse_args()
    path = RESULTS / "relatives.json"
    found = dict(read_json(path)["encoders"]) if path.exists() else {}
    for line in given.encoders.read_text("utf-8").splitlines():
        spec = line.partition("\t")[0].strip()
        if not spec or spec.startswith("#"):
            continue
        try:
            found[spec] = read(spec, given.store, found.get(spec, {}))
        except EncbenchError as error:
            print(f"{spec}: {error}", flush=True)
            continue
        keep("relatives", {"score": f"reader {EVERYTHING}", "encoders": found})
        between(ROOT / "docs" / "cure.md", table(found), "relatives")


if __name__ == "__main__":
    main()
