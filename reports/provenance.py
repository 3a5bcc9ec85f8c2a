"""The provenance of a run: data, rule, seed, versions and machines."""

from __future__ import annotations

from .load import Run
from .text import clean_text, quantity


def provenance_rows(run: Run) -> list[tuple[str, str]]:
    """The pins of this run, as label and value; several values if records differ."""
    p = run.prediction
    seen: dict[str, dict[str, None]] = {}
    packages: dict[str, dict[str, None]] = {}
    for record in run.records:
        origin = dict(record.provenance)
        if origin.get("commit") and origin.get("dirty"):
            origin["commit"] = f"{origin['commit']} with uncommitted changes"
        for key in ("commit", "python", "platform", "cpu_count", "device"):
            if origin.get(key):
                seen.setdefault(key, {})[str(origin[key])] = None
        for name, version in (origin.get("packages") or {}).items():
            packages.setdefault(str(name), {})[str(version)] = None
    rule = {name: getattr(p.rule, name) for name in ("name", "version", "metric", "resamples")}
    seconds = sum(record.seconds or 0 for record in run.records)
    origins = {name: "; ".join(values) for name, values in seen.items()}
    rows = [
        ("Prediction", f"sha256 {p.hash}"),
        ("Made", p.created),
        ("Rule", ", ".join(f"{k} {v}" for k, v in rule.items() if v)),
        ("Seed", str(p.seed)),
        *((f"Data of {probe}", str(dataset)) for probe, dataset in p.data.items()),
        ("Images re-encoded by", run.reencoder),
        ("Device asked for", str(run.config.get("device") or "")),
        ("Commit", origins.get("commit", "")),
        ("Python", origins.get("python", "")),
        ("Platform", origins.get("platform", "")),
        ("CPUs", origins.get("cpu_count", "")),
        ("Device", origins.get("device", "")),
        ("Packages", ", ".join(f"{name} {' or '.join(v)}" for name, v in packages.items())),
        ("Records", f"{len(run.records)}, {quantity(seconds)} s of probing"),
    ]
    return [(clean_text(label), clean_text(value)) for label, value in rows if value]
