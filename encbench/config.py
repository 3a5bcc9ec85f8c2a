"""The resolved configuration of a run: a frozen dataclass with the keys of the flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .data.hub import cache_dir
from .errors import UsageError


def default_store() -> Path:
    """Where vectors are kept unless ``--store`` says otherwise: below the cache folder."""
    return cache_dir() / "store"


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run depends on. Presets are functions that return one.

    Attributes:
        encoders: candidate spec strings; controls come in by themselves. Without any, the zoo's
            are taken where the data are scenes.
        out: folder of the run.
        coco: COCO folder; None for the embedded scenes.
        coco_split: e.g. 'val2017'; None if the folder has only one.
        allow_missing_images: work on the images that are there.
        dpg: DPG-Bench prompts, a folder of txt or a jsonl; None for long captions of scenes
            where ``coco`` is None too, else no ablation.
        re_encoder: spec of the image re-encoder, or 'none'; None for 'dinov3', and on scenes for
            'mini-dinov3', which comes with encbench.
        probes: names; empty for all that are registered.
        queries: of the retrieval probe.
        ks: neighbors at which retrieval is scored; 2 is always among them.
        draws: random versions of each prompt at the ablation's headline setting.
        shares: shares removed, each above 0 and below 1.
        units: 'words', 'sentences'.
        places: 'anywhere', 'start', 'end'.
        layers: further layers under which the order is checked.
        pools: further poolings under which the order is checked.
        limit: look at no more than so many items a probe; for trying things out.
        seed: of everything random.
        device: 'auto', 'cpu' or 'cuda'.
        store: folder of the embedding store.
    """

    encoders: tuple[str, ...] = ()
    out: Path = Path("runs/encbench")
    coco: Path | None = None
    coco_split: str | None = None
    allow_missing_images: bool = False
    dpg: Path | None = None
    re_encoder: str | None = None
    probes: tuple[str, ...] = ()
    queries: int = 1000
    ks: tuple[int, ...] = (1, 2, 5, 10)
    draws: int = 5
    shares: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    units: tuple[str, ...] = ("words", "sentences")
    places: tuple[str, ...] = ("anywhere", "start", "end")
    layers: tuple[str, ...] = ()
    pools: tuple[str, ...] = ("max", "own")
    limit: int | None = None
    seed: int = 0
    device: str = "auto"
    store: Path = dataclasses.field(default_factory=default_store)

    def __post_init__(self) -> None:
        """Check what can be checked without looking at any file.

        Raises:
            UsageError: naming the option.
        """

        def need(holds: bool, text: str) -> None:
            if not holds:
                raise UsageError(text)

        need(self.queries >= 1, f"--queries must be at least 1, not {self.queries}")
        need(all(k >= 1 for k in self.ks), f"--ks must be whole numbers of at least 1: {self.ks}")
        need(self.draws >= 1, f"--draws must be at least 1, not {self.draws}")
        need(
            all(0 < share < 1 for share in self.shares),
            f"--shares must lie above 0 and below 1: {self.shares}",
        )
        for name, values, known in (
            ("--units", self.units, ("words", "sentences")),
            ("--places", self.places, ("anywhere", "start", "end")),
        ):
            for value in values:
                need(value in known, f"{name} {value}: known are {', '.join(known)}")
        need(self.limit is None or self.limit >= 2, f"--limit must be at least 2, not {self.limit}")
        need(self.seed >= 0, f"--seed must not be negative: {self.seed}")

    @property
    def on_scenes(self) -> bool:
        """Whether no data are named, so that the embedded scenes are used."""
        return self.coco is None and self.dpg is None and self.coco_split is None

    @property
    def chosen_re_encoder(self) -> str:
        """The re-encoder's spec, the default filled in."""
        return self.re_encoder or ("mini-dinov3" if self.on_scenes else "dinov3")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, paths as text."""
        return {
            key: str(value) if isinstance(value, Path) else value
            for key, value in dataclasses.asdict(self).items()
        }

    def probe_options(self, probe: str) -> dict[str, Any]:
        """What a probe is told, from the flags that are about it."""
        if probe == "retrieval":
            return {"ks": self.ks, "queries": self.queries}
        if probe == "ablation":
            return {
                "draws": self.draws,
                "shares": self.shares,
                "units": self.units,
                "places": self.places,
            }
        return {}


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """A configuration from plain values (flags, TOML), lists and strings turned into the
    types of the fields; None means the default.

    Raises:
        UsageError: for an unknown key or a value of the wrong type, by name.
    """
    fields = {field.name: field for field in dataclasses.fields(RunConfig)}
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise UsageError(f"unknown configuration key '{key}'; known: {', '.join(fields)}")
        if value is None:
            continue
        annotation = str(fields[key].type)
        try:
            if annotation.startswith("tuple"):
                kind = {"tuple[int, ...]": int, "tuple[float, ...]": float}.get(annotation, str)
                parts = value if isinstance(value, list | tuple) else [value]
                made[key] = tuple(kind(part) for part in parts)
            elif annotation.startswith("Path"):
                made[key] = Path(value).expanduser()
            else:
                made[key] = value
        except (TypeError, ValueError):
            raise UsageError(f"the value of '{key}' is not of the right type: {value!r}") from None
    return RunConfig(**made)
