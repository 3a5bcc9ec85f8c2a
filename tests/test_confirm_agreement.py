"""Agreement of predictors with trained scores; predictions that are older than their outcomes."""

import json
import subprocess
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from encbench.confirm.agreement import measure_agreement, seed_ceiling
from encbench.confirm.bank import read_bank
from encbench.errors import EncbenchError
from encbench.files import digest

ROOT = Path(__file__).parents[1]
OUTCOMES = ROOT / "benchmarks" / "outcomes"


def measure(predicted, actual, sets=None):
    count = len(predicted)
    sets = sets or [str(k) for k in range(count)]
    values = (np.array(predicted, float), np.array(actual, float))
    return measure_agreement("probe", *values, sets=sets, strata=["final"] * count, draws=300)


def test_a_perfect_order_and_a_reversed_one():
    perfect = measure(range(12), range(12))
    assert perfect.pooled.value == perfect.within == perfect.lowest == 1
    assert perfect.pooled.low == 1
    assert 0.3 < perfect.chance < 0.8
    assert measure(range(12), range(12, 0, -1)).pooled.value == pytest.approx(-1)


def test_the_interval_is_wider_where_encoders_share_weights():
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.normal(size=6), 4)
    noisy = truth + np.repeat(rng.normal(size=6), 4) + 0.05 * rng.normal(size=24)
    alone = measure(noisy, truth + 0.01 * rng.normal(size=24)).pooled
    shared = measure(noisy, truth, [str(k // 4) for k in range(24)]).pooled
    assert shared.high - shared.low > 1.3 * (alone.high - alone.low)


def test_too_few_encoders_and_no_numbers_are_refused():
    with pytest.raises(EncbenchError, match="3 encoders; a rank correlation needs 4"):
        measure([1, 2, 3], [1, 2, 3])
    with pytest.raises(EncbenchError, match="a score is not a number"):
        measure([1, 2, 3, float("nan")], [1, 2, 3, 4])


def test_the_ceiling_is_the_correlation_with_the_truth():
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(4000, 1))
    scores = truth + 0.5 * rng.normal(size=(4000, 2))
    real = np.corrcoef(truth[:, 0], scores.mean(1))[0, 1]
    assert seed_ceiling(scores) == pytest.approx(real, abs=0.01)


def git(*words):
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return "" if done.returncode else done.stdout


LOST = {"predictions-3.json"}  # the commits before these trainings were lost: docs/prediction.md


def first_said(path: Path) -> dict[tuple[str, str], tuple[float, datetime]]:
    """By encoder and rule, the first committed value and when it was committed."""
    commits = git("log", "--reverse", "--format=%H %cI", "--", str(path)).splitlines()
    if not commits or git("rev-parse", "--is-shallow-repository").strip() == "true":
        pytest.skip("no whole history of this file here (no clone, or a shallow one)")
    first: dict[tuple[str, str], tuple[float, datetime]] = {}
    for line in commits:
        commit, date = line.split()
        then = json.loads(git("show", f"{commit}:{path.relative_to(ROOT)}"))["encoders"]
        for spec, row in then.items():
            for rule, value in row["rules"].items():
                first.setdefault((spec, rule), (value, datetime.fromisoformat(date)))
    return first


@pytest.mark.parametrize(
    "path", sorted(OUTCOMES.glob("predictions-[0-9]*.json")), ids=lambda p: p.name
)
def test_predictions_are_committed_before_their_encoders_are_trained(path):
    """What each rule says of an encoder is older than the encoder's trainings, and unchanged."""
    first = first_said(path)
    held = json.loads(path.read_text("utf-8"))
    assert digest({name: held[name] for name in ("rules", "encoders")}) == held["hash"]
    said = {(s, r): v for s, row in held["encoders"].items() for r, v in row["rules"].items()}
    assert said == {key: value for key, (value, _) in first.items()}
    rows = [row for row in read_bank(OUTCOMES / "bank.csv") if row.encoder in held["encoders"]]
    for row in rows:
        about = held["encoders"][row.encoder]
        assert row.revision == about["revision"]  # the very weights that were measured
        created = datetime.fromisoformat(row.created)
        assert datetime.fromisoformat(about["scores"]["reader"]["measured"]) < created
        for rule in about["rules"] if path.name not in LOST else ():
            assert first[row.encoder, rule][1] < created
