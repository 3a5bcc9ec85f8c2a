"""Parquet, and any dataset that the library ``datasets`` loads: a local folder or a hub id.

The library keeps it as a memory-mapped Arrow table, so that images are read by their row, in any
order, and memory holds none of them. No code of a dataset is ever run: of a hub repository only
data files are fetched, and a folder with a loading script is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, MissingLibraryError, UsageError, first_line
from ..files import digest, expand_home
from ..listing import is_hidden
from ..types import CaptionSet, ImageSource
from .datasets import DatasetFamily, DatasetSpec, DatasetUse, clean_captions, number_pairs
from .hub import cache_dir, combine_hashes, digest_each, resolve_dataset
from .tars import expand_files

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img")
CAPTION_COLUMNS = ("caption", "captions", "text", "prompt", "txt", "sentences")


@dataclass(frozen=True, slots=True)
class TableRow:
    """An image in a row of a table, as an :class:`~encbench.types.ImageSource`.

    Attributes:
        table: with the image column alone, not decoded.
        where: name of the table, for messages.
    """

    table: Any
    row: int
    where: str

    @property
    def name(self) -> str:
        return f"{self.row:08d}"

    def read_bytes(self) -> bytes:
        """
        Raises:
            OSError: if there is no image in the row.
        """
        (value,) = self.table[self.row].values()
        if isinstance(value, dict):  # of an image column: its bytes, or the path of its file
            path = Path(value["path"] or "")
            value = value["bytes"] or (path.is_absolute() and path.read_bytes())
        if not isinstance(value, bytes):
            raise OSError("the row holds no image")
        return value

    def __str__(self) -> str:
        return f"row {self.row} of {self.where}"


def load_table(
    source: str,
    *,
    revision: str | None = None,
    split: str | None = None,
    name: str | None = None,
    image: str | None = None,
    caption: str | None = None,
    group: str | None = None,
    training: bool = False,
) -> CaptionSet:
    """Read the captions of a table, and where its images are.

    Rows without a caption are left out and counted in the notes.

    Args:
        source: a .parquet file, a pattern of them with ``*`` or braces, a folder that ``datasets``
            loads (or saved), or the id of a dataset on the hub.
        revision: of the hub repository; resolved once and then kept.
        split: which split; may be left out where there is one, or one for training.
        name: which configuration, where there are several.
        image: column with the images.
        caption: column with a text, or a list of texts.
        group: column whose equal values mark the rows of one image, of which the first is read.
        training: prefer the split 'train'.

    Raises:
        MissingLibraryError: if ``datasets`` is not installed.
        DataError: if there is nothing to read, a column is not there, or a script would be run.
        UsageError: if a split or configuration must be named.
    """
    library = _library()
    tables, pin, label = _open(library, source, revision, name)
    if split is None:
        split = next(iter(tables)) if len(tables) == 1 else "train" if training else None
    if split not in tables:
        named = f"has no split '{split}'" if split else "has several splits"
        raise UsageError(f"{source} {named}; add ?split=... ({', '.join(tables)})")
    table, where = tables[split], f"{label} ({split})"
    columns = table.features
    pictures = [key for key, kind in columns.items() if isinstance(kind, library.Image)]
    image = _column(columns, image, [*pictures, *IMAGE_COLUMNS], "images", "image", where)
    caption = _column(columns, caption, CAPTION_COLUMNS, "captions", "caption", where)
    if group is not None:
        _column(columns, group, (), "groups", "group", where)
    bare = table.select_columns([image])
    if image in pictures:
        bare = bare.cast_column(image, library.Image(decode=False))
    elif getattr(columns[image], "dtype", "") not in ("binary", "large_binary"):
        raise DataError(
            f"the column '{image}' of {where} holds {columns[image]}, not images; name another by "
            "?image=COLUMN (links are not followed: download the images first)"
        )
    texts = [_texts(value, f"row {i} of {where}") for i, value in enumerate(table[caption])]
    first: dict[Any, int] = {}
    rows: dict[int, list[str]] = {}
    for row, key in enumerate(table[group] if group else range(len(texts))):
        rows.setdefault(first.setdefault(key, row), []).extend(texts[row])
    silent = sum(not listed for listed in rows.values())
    notes = [f"{silent:,} images without a caption were left out"] if silent else []
    pairs: list[tuple[str, ImageSource | None, Sequence[str]]] = []
    for row, listed in rows.items():
        if listed:
            file = TableRow(bare, row, where)
            pairs.append((file.name, file, listed))
    if not pairs:
        raise DataError(f"{where} holds no image with a caption")
    return number_pairs(label, digest([pin, split, name, image, caption, group]), pairs, notes)


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingLibraryError("datasets", "encbench[data]", "A table of images") from error
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its errors become one line
    return datasets


def _open(
    library: Any, source: str, revision: str | None, name: str | None
) -> tuple[dict[str, Any], str, str]:
    """The tables by their split, what pins them, and a name."""
    place = expand_home(source)
    parquet = source.endswith(".parquet")
    if revision and (parquet or place.exists()):
        raise UsageError(f"{source} is on this machine and has no revision, so no '@{revision}'")
    if parquet:
        files = expand_files(source, ".parquet")
        pin = combine_hashes(digest_each({str(n): file for n, file in enumerate(files)}))
        label = place.parent.resolve().name if len(files) > 1 else files[0].stem
        paths = [str(file) for file in files]
        return _load(library, "parquet", source, data_files=paths), pin, label
    if place.is_dir():
        listed = sorted(p for p in place.rglob("*") if p.is_file() and not is_hidden(p.name))
        pin = combine_hashes(digest_each({p.relative_to(place).as_posix(): p for p in listed}))
        label = place.resolve().name
    elif source.startswith(("/", ".", "~")) or source.count("/") > 1 or not source:
        raise DataError(f"there is no folder {source}; check the path, or name a hub repository")
    else:
        place, pin = resolve_dataset(source, revision)
        label = source
    if any((place / file).is_file() for file in ("dataset_dict.json", "state.json")):
        try:
            held = library.load_from_disk(str(place))
        except Exception as error:
            raise DataError(f"cannot read {source} ({first_line(error)})") from error
        return held if isinstance(held, dict) else {"all": held}, pin, label
    return _load(library, str(place), source, name=name), pin, label


def _load(library: Any, what: str, source: str, **how: Any) -> dict[str, Any]:
    cache = cache_dir() / "datasets"
    try:
        found: dict[str, Any] = library.load_dataset(what, cache_dir=str(cache), **how)
    except Exception as error:  # the library raises dozens of kinds
        text = first_line(error)
        if "scripts are no longer supported" in text:
            raise DataError(
                f"{source} comes with a loading script, and no code of a dataset is run; take its "
                "parquet files (on the hub: the branch refs/convert/parquet)"
            ) from error
        if "Config name is missing" in text or "BuilderConfig" in text:
            raise UsageError(f"{source}: {text}; choose one with ?name=...") from error
        raise DataError(f"cannot read {source} ({text})") from error
    return found


def _column(
    columns: Any, given: str | None, known: Sequence[str], what: str, option: str, where: str
) -> str:
    wanted = [given] if given else [name for name in known if name in columns]
    if not wanted or wanted[0] not in columns:
        lacks = f"has no column '{given}'" if given else f"has no column of {what} that is known"
        there = ", ".join(map(ascii, columns))
        raise DataError(f"{where} {lacks}; name one with ?{option}=COLUMN (there: {there})")
    return wanted[0]


def _texts(value: Any, where: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: the caption must be a text or a list of texts, not {value!r}")
    return clean_captions(texts, where)


def _load_spec(spec: DatasetSpec, use: DatasetUse) -> CaptionSet:
    return load_table(
        spec.source, revision=spec.revision, training=use.training, **dict(spec.options)
    )


FAMILY = DatasetFamily(
    name="datasets",
    summary="Parquet files, or a dataset of the library datasets: local folder or hub id.",
    examples=("datasets:FOLDER/*.parquet", "datasets:HUB-ID@REVISION?split=train&caption=text"),
    load=_load_spec,
    options={
        "split": "which split (default: the only one, or train for training)",
        "name": "which configuration of the dataset",
        "image": "column with the images",
        "caption": "column with a caption or a list of captions",
        "group": "column that marks the rows of one image, such as image_id",
    },
    revisions=True,
)
