"""Predict what whitening an encoder's features changes, before anything is trained on them.

    cd FOLDER_OF_ENCODERS
    python predict_cure.py --encoders cure.txt --out predictions-cure-1.json

The reader's scores of each encoder and arm: ``plain`` (as a training with the default
``--condition-scaling rms`` reads it), ``whitened``, and ``no-pooled`` (plain without the encoder's
pooled vector, where it has one). A line of the list is a spec, a tab, and which of its arms had
been trained when the prediction was made. Scores that the file holds stay as they are.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

from predict_heldout import context_maker, current_commit

from encbench.errors import EncbenchError
from encbench.files import digest, write_json
from encbench.probes.reader import ReaderProbe, WhitenedReaderProbe

SCORES = ("everything", "other-words", *(f"everything@{n}" for n in (100, 200, 300, 400)))


class WithoutPooled(ReaderProbe):
    own_pooled = False


ARMS = {"plain": ReaderProbe, "whitened": WhitenedReaderProbe, "no-pooled": WithoutPooled}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoders", type=Path, required=True, help="a spec and a remark a line")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--store", type=Path, default=Path("runs/store"))
    args = parser.parse_args()
    commit = current_commit()
    rows = json.loads(args.out.read_text("utf-8"))["cure"] if args.out.exists() else {}
    for line in args.encoders.read_text("utf-8").splitlines():
        spec, _, trained = line.strip().partition("\t")
        if not spec or spec.startswith("#"):
            continue
        row = rows.setdefault(spec, {"revision": "", "trained_before": trained, "arms": {}})
        context = context_maker(spec, args.store)("reader")
        row["revision"] = context.encoder.resolved.revision
        for arm, probe in ARMS.items():
            if arm in row["arms"]:
                continue
            if arm == "no-pooled" and context.condition(["a photo"])[1] is None:
                continue
            try:
                found = probe().run(context, seed=0).scores
            except EncbenchError as error:
                print(f"{spec}: no {arm}: {error}", flush=True)
                continue
            values = {n: [found[n].value, found[n].low, found[n].high] for n in SCORES}
            measured = datetime.now(UTC).isoformat(timespec="seconds")
            row["arms"][arm] = {"measured": measured, "commit": commit, **values}
            write(args.out, rows)
            print(f"{spec}: {arm} {values['everything']}", flush=True)


def write(path: Path, rows: dict[str, dict]) -> None:
    content = {
        "rule": "reader version 1: the score 'everything', mean over 100 to 400 reader steps; "
        "predicts 4-step GenEval in the wording that was trained on (tier A)",
        "cure": rows,
    }
    written = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(path, {**content, "written": written, "hash": digest(content)})


if __name__ == "__main__":
    main()
