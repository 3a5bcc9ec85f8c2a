"""``encbench push``"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

import typer

from ..options import option
from .options import DryRun, add_command

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class PushConfig:
    folder: Path = option(
        MISSING, "Folder of a run, or of a model by encbench export.", argument=True
    )
    to: str = option(MISSING, "Repository on the hub, OWNER/NAME.")
    upload: bool = option(False, "Really upload. Without it nothing leaves this machine.")
    name: str | None = option(None, "Name of the run in the repository.", shown="the folder's name")
    public: bool = option(False, "If the repository has to be made, make it public.")
    replace: bool = option(False, "Overwrite a run of that name, or the model.")


@add_command(app, "push", PushConfig, toml=False)
def push(config: PushConfig, dry_run: DryRun = False) -> None:
    """Upload a run's records or an exported model to the Hugging Face hub, only with --upload.

    The records of a run go to a dataset, with each item's score and text, the prediction and the
    verdict; no images, features or weights. Look at --dry-run first: records hold the settings and
    the folder names of the run. Fetch them with: encbench pull OWNER/NAME --to FOLDER.
    """
    from ..errors import UsageError
    from ..share import plan_upload
    from ..share import push as send

    upload = plan_upload(config.folder, config.to, config.name)
    total = f"{len(upload.files)} files, {upload.bytes / 1e6:.1f} MB"
    if dry_run:
        for name, path in upload.files.items():
            typer.echo(f"{path.stat().st_size:>12,} {name}")
        typer.echo(f"would go to the {upload.kind} {upload.repo}: {total}")
        return
    if not config.upload:
        raise UsageError(
            f"nothing was uploaded: add --upload to send {total} to the {upload.kind} "
            f"{upload.repo}, or --dry-run to list them"
        )
    where = send(upload, public=config.public, replace=config.replace)
    typer.echo(f"uploaded {total}: {where}")
