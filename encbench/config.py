"""The resolved configuration of a run: a frozen dataclass with the keys of the flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import Any

from .data.hub import cache_dir
from .data.spec import DatasetSpec
from .device import DEVICE_HELP
from .errors import RecordError, UsageError
from .files import expand_home, read_json
from .options import check_options, from_values, option, to_values
from .schema import check_value

DATA, PROBES, RUN = "Data", "Probes", "Run"
READERS = ("reader", "reader-whitened", "trained-pooling")
"""Probes that write prompts, of a vocabulary where one is given."""


def default_store() -> Path:
    """The default of ``--store``: a folder below the cache folder."""
    return cache_dir() / "store"


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run depends on. Presets are functions that return values for it.

    Raises:
        UsageError: naming the option. Only what needs no file is checked.
    """

    encoders: tuple[str, ...] = option(
        (),
        "Encoders to compare, as family:source@revision?option=value&...; several after one flag. "
        "Default on scenes: the encoders of the zoo. Controls are added automatically. See: "
        "encbench list encoders.",
        metavar="SPEC...",
    )
    out: Path = option(Path("runs/encbench"), "Folder of the run: records, prediction and report.")
    data: str | None = option(
        None,
        "Images with captions, such as coco:FOLDER, folder:FOLDER, scenes:scenes-easy or a data "
        "set of another package. See: encbench list datasets.",
        DATA, metavar="SPEC",
    )  # fmt: skip
    prompts: str | None = option(
        None,
        "Long prompts: a .txt file with one per line, a .csv or .jsonl file with a column "
        "'prompt', or a prompt set such as dpg:FOLDER or geneval:FILE. See: "
        "encbench list prompt-sets.",
        DATA, metavar="FILE|SPEC",
    )  # fmt: skip
    captions: Path | None = option(
        None,
        "Captions of your own, without images: a .csv or .jsonl with columns 'caption' and "
        "'group', or a .txt with an empty line between groups. Captions of a group mean the same.",
        DATA, metavar="FILE",
    )  # fmt: skip
    vocabulary: Path | None = option(
        None,
        "Words of your own for the reader: a .toml with 'classes', maybe 'attributes' and "
        "'synonyms'. The reader's captions and prompts are then written with them.",
        DATA, metavar="FILE",
    )  # fmt: skip
    coco: Path | None = option(
        None,
        "COCO folder (annotations/captions_<split>.json, <split>/*.jpg). Without --coco and --dpg, "
        "the embedded scenes of colored shapes are used.",
        DATA,
    )
    coco_split: str | None = option(
        None, "Split of COCO: val2017 or train2017; needed if the folder has both.", DATA
    )
    allow_missing_images: bool = option(
        False, "Use the images that can be read; leave missing and broken ones unscored.", DATA
    )
    dpg: Path | None = option(
        None, "DPG-Bench prompts: a folder of .txt files, or a .jsonl, .csv or .txt file.", DATA
    )
    re_encoder: str | None = option(
        None,
        "How retrieved images are compared: dinov3, dinov3:MODEL, dinov2, mini-dinov3, labels, "
        "pixels, or none (text only). See: encbench list re-encoders.",
        DATA, shown="dinov3; on scenes mini-dinov3",
    )  # fmt: skip
    probes: tuple[str, ...] = option((), "Probes to run.", PROBES, shown="all but trained-pooling")
    queries: int = option(1000, "Retrieval: number of queries.", PROBES, least=1)
    ks: tuple[int, ...] = option(
        (1, 2, 5, 10), "Retrieval: numbers of neighbors; 2 is always added.", PROBES, least=1
    )
    draws: int = option(
        5, "Ablation: random versions of each prompt with half of its words removed.", PROBES,
        least=1,
    )  # fmt: skip
    shares: tuple[float, ...] = option(
        (0.1, 0.3, 0.5, 0.7, 0.9), "Ablation: shares of the text to remove.", PROBES,
        above=0, below=1,
    )  # fmt: skip
    units: tuple[str, ...] = option(
        ("words", "sentences"), "Ablation: units to remove.", PROBES,
        choices=("words", "sentences"),
    )  # fmt: skip
    places: tuple[str, ...] = option(
        ("anywhere", "start", "end"), "Ablation: where to remove them.", PROBES,
        choices=("anywhere", "start", "end"),
    )  # fmt: skip
    rule: str | None = option(
        None,
        "Rule that ranks the encoders. See: encbench list rules.",
        PROBES, shown="reader; emf-retrieval where the reader probe was left out",
    )  # fmt: skip
    layers: tuple[str, ...] = option(
        (), "Also check the order with these layers: an index, penultimate or normavg.", PROBES
    )
    pools: tuple[str, ...] = option(
        ("max", "own"),
        "Also check the order with these poolings: mean, mean-padded, last, eos, max or own.",
        PROBES,
    )
    limit: int | None = option(
        None, "Use at most this many items in each probe, for a quick try.", RUN, least=2
    )
    seed: int = option(0, "Random seed.", RUN, least=0)
    device: str = option("auto", DEVICE_HELP, RUN)
    store: Path = option(
        default_store, "Folder of the embedding store.", RUN, shown="$ENCBENCH_CACHE/store"
    )

    def __post_init__(self) -> None:
        check_options(self)
        pairs = (("data", "coco"), ("data", "captions"), ("coco", "captions"), ("prompts", "dpg"))
        for one, other in pairs:
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise UsageError(f"--{one} and --{other} are both given; give one of them")

    @property
    def dataset(self) -> DatasetSpec | None:
        """The dataset of images with captions that the options name."""
        if self.data is not None:
            return DatasetSpec.parse(self.data)
        if self.captions is not None:
            return DatasetSpec("captions", str(self.captions))
        if self.coco is not None:
            split = (("split", self.coco_split),) if self.coco_split else ()
            return DatasetSpec("coco", str(self.coco), options=split)
        return None

    @property
    def prompt_set(self) -> DatasetSpec | None:
        """The long prompts that the options name."""
        if self.prompts is not None and expand_home(self.prompts).is_file():
            return DatasetSpec("dpg", self.prompts)
        if self.prompts is not None:
            return DatasetSpec.parse(self.prompts)
        return None if self.dpg is None else DatasetSpec("dpg", str(self.dpg))

    @property
    def on_scenes(self) -> bool:
        """Whether the embedded scenes are used: they are named, or no data are given."""
        if self.dataset is not None:
            return self.dataset.family == "scenes"
        return self.prompt_set is None and self.coco_split is None

    @property
    def chosen_re_encoder(self) -> str:
        """The spec of the re-encoder, or the default."""
        return self.re_encoder or ("mini-dinov3" if self.on_scenes else "dinov3")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, paths as text."""
        return to_values(self)

    def probe_options(self, probe: str) -> dict[str, Any]:
        """The options of a probe, from the flags that concern it.

        Raises:
            DataError: if the vocabulary cannot be read.
        """
        if probe in READERS and self.vocabulary is not None:
            from .data.vocabulary import read_vocabulary

            return {"vocabulary": asdict(read_vocabulary(self.vocabulary))}
        if probe == "retrieval":
            return {"ks": self.ks, "queries": self.queries}
        if probe == "ablation":
            names = ("draws", "shares", "units", "places")
            return {name: getattr(self, name) for name in names}
        return {}


def read_run_config(path: Path) -> RunConfig:
    """The ``config.json`` of a run's folder.

    Raises:
        RecordError: naming the file, if it is damaged.
    """
    values = read_json(path)
    try:
        return run_config(check_value(dict[str, Any], values, "it"))
    except (RecordError, UsageError) as error:
        raise RecordError(f"{path} is damaged ({error}); remove it and run again") from error


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """A configuration from plain values; see :func:`~encbench.options.from_values`."""
    return from_values(RunConfig, values)


@dataclass(frozen=True)
class ScoreConfig:
    """How to score a folder of images."""

    images: Path = option(
        MISSING, "Folder of images: in GenEval's layout, with a captions.jsonl, or with --prompts.",
        argument=True,
    )  # fmt: skip
    out: Path = option(MISSING, "Folder for the scores.")
    metrics: tuple[str, ...] = option(
        (), "Metrics to score by, as specs; see encbench list metrics.", metavar="SPEC..."
    )
    prompts: Path | None = option(
        None,
        "Prompts whose ids name the image files (ID.png, ID_0.png or ID/0.png), such as "
        "DPG-Bench's csv.",
    )
    grid: int = option(1, "Each file holds N x N images, as DPG-Bench's do with 2.", least=1)
    images_per_prompt: int | None = option(
        None, "Images of each prompt.", least=1, shown="as many as any prompt has"
    )
    seed: int = option(0, "Random seed of the bootstrap.", least=0)
    device: str = option("auto", DEVICE_HELP)

    def __post_init__(self) -> None:
        check_options(self)
