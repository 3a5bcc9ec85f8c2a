"""The options that ``run`` and ``probe`` share, turned into a configuration."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

DATA, PROBES, RUN, CONFIRM = "Data", "Probes", "Run", "Confirmation"
OF_CONFIRM = ("confirm", "budget")


def merge(ctx: typer.Context, values: dict[str, Any], *, over: bool) -> None:
    """Make values the defaults of a command's options; ``over`` those that are there already."""
    held = dict(ctx.default_map or {})
    ctx.default_map = {**held, **values} if over else {**values, **held}


def read_toml(ctx: typer.Context, path: Path | None) -> Path | None:
    """Take defaults from a TOML file whose keys are the flags' names."""
    if path is not None:
        from ..presets import run_preset

        merge_toml(ctx, path, run_preset)
    return path


def merge_toml(ctx: typer.Context, path: Path, preset: Callable[[str], dict[str, Any]]) -> None:
    """Take defaults from a TOML file, over those of the preset that it may name."""
    from ..errors import UsageError

    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    values = {key.replace("-", "_"): value for key, value in values.items()}
    known = {p.name for p in ctx.command.params if p.name} - {"config"}
    for key in values:
        if key not in known:
            listed = ", ".join(sorted(known))
            raise UsageError(f"unknown key '{key}' in {path}; known: {listed}")
    if "preset" in values:
        merge(ctx, preset(values["preset"]), over=False)
    merge(ctx, values, over=True)


def read_preset(ctx: typer.Context, name: str | None) -> str | None:
    """Take defaults from a preset; flags and TOML go over it."""
    if name is not None:
        from ..presets import run_preset

        merge(ctx, run_preset(name), over=False)
    return name


def add_run_options(work: Callable[..., None], *, confirms: bool = False) -> Callable[..., None]:
    """A command function with all the options of a run, around ``work(config, dry_run)``, or
    ``work(config, dry_run, confirm, budget)`` if it ``confirms``."""

    def main(
        ctx: typer.Context,
        encoders: Annotated[
            list[str] | None,
            typer.Option(
                help="Encoders to compare, family:source@revision?option=value&...; several "
                "after one flag; without any, on scenes, the zoo's. Controls are added by "
                "themselves. See: encbench list encoders.",
                metavar="SPEC...",
            ),
        ] = None,
        out: Annotated[
            Path, typer.Option(help="Folder of this run: records, prediction, report.")
        ] = Path("runs/encbench"),
        config: Annotated[
            Path | None,
            typer.Option(
                help="TOML file with the same keys as these flags; flags go over it.",
                callback=read_toml,
                is_eager=True,
            ),
        ] = None,
        preset: Annotated[
            str | None,
            typer.Option(
                help="emf: the paper's four encoders and its protocol.",
                callback=read_preset,
                is_eager=True,
            ),
        ] = None,
        coco: Annotated[
            Path | None,
            typer.Option(
                help="COCO folder (annotations/captions_<split>.json, <split>/*.jpg). Without "
                "--coco and --dpg, embedded scenes of colored shapes are used.",
                rich_help_panel=DATA,
            ),
        ] = None,
        coco_split: Annotated[
            str | None,
            typer.Option(
                help="val2017 or train2017; needed where both are there.", rich_help_panel=DATA
            ),
        ] = None,
        allow_missing_images: Annotated[
            bool,
            typer.Option(
                help="Work on the images that are there; broken ones are unscored.",
                rich_help_panel=DATA,
            ),
        ] = False,
        dpg: Annotated[
            Path | None,
            typer.Option(
                help="DPG-Bench prompts: folder of txt files, or jsonl.", rich_help_panel=DATA
            ),
        ] = None,
        re_encoder: Annotated[
            str | None,
            typer.Option(
                help="How retrieved images are compared: dinov3, dinov3:MODEL, dinov2, "
                "mini-dinov3, labels, pixels, or none (text only). Default dinov3, on scenes "
                "mini-dinov3. See: encbench list re-encoders.",
                rich_help_panel=DATA,
            ),
        ] = None,
        probes: Annotated[
            list[str] | None,
            typer.Option(help="Probes to run; all by default.", rich_help_panel=PROBES),
        ] = None,
        queries: Annotated[
            int, typer.Option(help="Retrieval: how many queries.", rich_help_panel=PROBES)
        ] = 1000,
        ks: Annotated[
            list[int] | None,
            typer.Option(help="Retrieval: neighbors (1 2 5 10).", rich_help_panel=PROBES),
        ] = None,
        draws: Annotated[
            int,
            typer.Option(
                help="Ablation: random versions of each prompt, half of its words removed.",
                rich_help_panel=PROBES,
            ),
        ] = 5,
        shares: Annotated[
            list[float] | None,
            typer.Option(help="Ablation: shares removed (.1 .3 .5 .7 .9).", rich_help_panel=PROBES),
        ] = None,
        units: Annotated[
            list[str] | None,
            typer.Option(help="Ablation: words, sentences (both).", rich_help_panel=PROBES),
        ] = None,
        places: Annotated[
            list[str] | None,
            typer.Option(help="Ablation: anywhere, start, end (all).", rich_help_panel=PROBES),
        ] = None,
        layers: Annotated[
            list[str] | None,
            typer.Option(
                help="Check the order under these layers, too: an index, penultimate, normavg.",
                rich_help_panel=PROBES,
            ),
        ] = None,
        pools: Annotated[
            list[str] | None,
            typer.Option(
                help="Check the order under these poolings, too (max own): mean, mean-padded, "
                "last, eos, max, own.",
                rich_help_panel=PROBES,
            ),
        ] = None,
        limit: Annotated[
            int | None,
            typer.Option(help="At most so many items a probe, to try it out.", rich_help_panel=RUN),
        ] = None,
        seed: Annotated[int, typer.Option(help="Of everything random.", rich_help_panel=RUN)] = 0,
        device: Annotated[
            str, typer.Option(help="auto, cpu or cuda.", rich_help_panel=RUN)
        ] = "auto",
        store: Annotated[
            Path | None,
            typer.Option(
                help="Folder of the embedding store (default $ENCBENCH_CACHE/store or "
                "~/.cache/encbench/store).",
                rich_help_panel=RUN,
            ),
        ] = None,
        dry_run: Annotated[
            bool,
            typer.Option(
                "--dry-run",
                help="Print what would be done, downloaded and spent; do nothing.",
                rich_help_panel=RUN,
            ),
        ] = False,
        confirm: Annotated[
            bool,
            typer.Option(
                "--confirm",
                help="Then put the ranking to the test, as encbench confirm does by itself: train "
                "and score small few-step models for some of the encoders.",
                rich_help_panel=CONFIRM,
            ),
        ] = False,
        budget: Annotated[
            str | None,
            typer.Option(
                help="With --confirm: time for the confirmation alone, such as 12m or 2h; probes "
                "and ranking come on top.",
                rich_help_panel=CONFIRM,
            ),
        ] = None,
    ) -> None:
        from .. import distributed
        from ..config import run_config
        from ..progress import show_log

        show_log()
        values = {k: v for k, v in locals().items() if k in _FIELDS and v not in (None, [], ())}
        chosen = run_config(values)
        more = (confirm, budget) if confirms else ()
        distributed.run_command(lambda: work(chosen, dry_run, *more))

    main.__doc__ = work.__doc__
    if not confirms:
        full = inspect.signature(main, eval_str=True)
        kept = [p for name, p in full.parameters.items() if name not in OF_CONFIRM]
        main.__signature__ = full.replace(parameters=kept)  # type: ignore[attr-defined]
    return main


_FIELDS = (
    "encoders", "out", "coco", "coco_split", "allow_missing_images", "dpg", "re_encoder", "probes",
    "queries", "ks", "draws", "shares", "units", "places", "layers", "pools", "limit", "seed",
    "device", "store",
)  # fmt: skip
