"""Export a trained model: a folder with a model card that diffusers or :mod:`.sample` loads.

A SANA becomes diffusers' own SanaTransformer2DModel. It has one time as its input, so the interval
is folded into it: in N equal steps t - r is always 1 / N, and the embedding of the interval is one
vector, which is added to the bias of the embedding of t. The folder's scheduler takes these steps.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ..checkpoint import load_weights, read_tensors
from ..errors import ModelError, UsageError
from ..files import (
    EXPORT_FORMAT,
    digest_files,
    read_json,
    replace_on_success,
    write_json,
    write_text,
)
from ..schema import load_dataclass
from . import checkpoint as files
from .checkpoint import DataState, EncoderState
from .config import FREE, TrainConfig, training_config
from .connector import Connector, connectors
from .dit import DiT, DiTConfig
from .networks import build_space, sana_config
from .sample import Instantaneous, Loaded, load_checkpoint
from .sana import SanaVelocity, diffusers

CONFIG, WEIGHTS, CONNECTOR = "config.json", "model.safetensors", "connector.safetensors"
VERSION = 1
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PRIVATE = (*FREE, "data", "folder", "coco", "coco_split")
"""Settings that are left out: paths of this machine, and what changes no weight."""


@dataclass(frozen=True)
class ExportState:
    """What ``config.json`` of an exported model holds.

    Attributes:
        network: fields of a :class:`~encbench.flow.dit.DiTConfig`; None for a SANA.
        whitened: whether the connectors put the mean token where there is no condition.
        text_tokens: tokens of a prompt that are used.
        autoencoder: spec of the latents' autoencoder; None for pixels.
        subfolder: of the autoencoder's source that holds it.
        side: of the images, in pixels.
        steps: sampling steps that it was exported for; other numbers only for a DiT.
        instantaneous: whether it is a flow-matching model, to be asked at r = t.
        step: steps of its training.
        training: settings of its training, without paths.
    """

    format: str
    version: int
    network: dict[str, Any] | None
    whitened: bool
    encoder: EncoderState
    text_tokens: int
    autoencoder: str | None
    subfolder: str
    side: int
    steps: int
    instantaneous: bool
    step: int
    data: DataState
    training: dict[str, Any]


def export_model(checkpoint: Path, to: Path, *, weights: str = "ema", steps: int = 4) -> Path:
    """Export a checkpoint to a folder, completely or not at all.

    Args:
        checkpoint: of a training, or its folder.
        to: a new or empty folder.
        weights: see :func:`~encbench.flow.sample.load_checkpoint`.
        steps: equal sampling steps. A SANA can then be sampled in no other number.

    Raises:
        UsageError: if ``to`` is in use, there are no such weights, or diffusers has no pipeline
            for this SANA's autoencoder.
        ModelError: if there is no sound checkpoint.
        StoreError: if the disk is full.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"{to} is not empty; choose another folder for --to")
    model = load_checkpoint(checkpoint, torch.device("cpu"), weights)
    state = files.read_state(files.find_checkpoint(checkpoint))
    net: Any = model.net.net if model.instantaneous else model.net
    for connector in connectors(net):
        connector.fold_scale()
    config, kept = model.config, model.config.as_dict()
    exported = ExportState(
        EXPORT_FORMAT, VERSION, asdict(net.config) if isinstance(net, DiT) else None,
        any(connector.mean is not None for connector in connectors(net)),
        model.encoder, config.text_tokens, config.autoencoder, _subfolder(model.space),
        config.side, steps, model.instantaneous, model.step, state.data,
        {key: value for key, value in kept.items() if key not in PRIVATE},
    )  # fmt: skip
    if isinstance(net, SanaVelocity) and not _is_dc(model.space):
        raise UsageError(
            "diffusers' SanaPipeline decodes the latents of an AutoencoderDC only, and this SANA "
            f"was trained on {config.autoencoder or 'pixels'}"
        )
    with replace_on_success(to) as folder:
        folder.mkdir()
        if isinstance(net, SanaVelocity):
            _write_sana(folder, net, exported)
        else:
            _save(folder / WEIGHTS, net)
        write_json(folder / CONFIG, asdict(exported))
        write_text(folder / "example.py", _example(exported))
        write_text(folder / "README.md", _card(exported, to.name))
    return to


def is_export(path: Path) -> bool:
    """Whether a folder was written by :func:`export_model`."""
    config = path / CONFIG
    held = read_json(config, ModelError) if config.is_file() else None
    return isinstance(held, dict) and held.get("format") == EXPORT_FORMAT


def load_export(path: Path, device: torch.device) -> Loaded:
    """An exported DiT, ready to sample.

    Raises:
        ModelError: naming the file, if it is damaged, of a newer version, or a SANA.
    """
    state = read_export(path)
    if state.network is None:
        raise ModelError(
            f"{path} is for diffusers: load it as its example.py does, or sample the training's "
            "own folder"
        )
    try:
        net = DiT(DiTConfig(**state.network))
    except (TypeError, UsageError) as error:
        raise ModelError(f"{path / CONFIG}: network: {error}") from error
    for connector in connectors(net) if state.whitened else ():
        connector.add_whitening()
        connector.whitener = None  # it was folded into the first layer
    load_weights(net, read_tensors(path / WEIGHTS), path / WEIGHTS)
    net = net.to(device).eval().requires_grad_(False)
    try:
        config = training_config(state.training)
    except UsageError as error:
        raise ModelError(f"{path / CONFIG}: training: {error}") from error
    return Loaded(
        Instantaneous(net) if state.instantaneous else net, build_space(config, device), config,
        state.encoder, state.step, state.instantaneous, digest_files([path / WEIGHTS]),
    )  # fmt: skip


def read_export(path: Path) -> ExportState:
    """
    Raises:
        ModelError: naming file and key, if it is damaged or of a newer version.
    """
    held = read_json(path / CONFIG, ModelError)
    state = load_dataclass(ExportState, held, str(path / CONFIG), ModelError)
    if state.version > VERSION:
        raise ModelError(f"{path} was written by a newer version of encbench; update it")
    return state


def load_connector(path: Path) -> Connector:
    """The connector of an exported SANA: an encoder's tokens (B, L, D) to ``prompt_embeds``.

    Raises:
        ModelError: naming the file, if it is missing or damaged.
    """
    tensors = read_tensors(path / CONNECTOR)
    try:
        width, cond_dim = tensors["first.weight"].shape
    except (KeyError, ValueError) as error:
        raise ModelError(f"{path / CONNECTOR} holds no connector") from error
    connector = Connector(cond_dim, width)
    connector.mean = torch.zeros(cond_dim) if "mean" in tensors else None
    load_weights(connector, tensors, path / CONNECTOR)
    return connector.eval().requires_grad_(False)


def _is_dc(space: Any) -> bool:
    return type(getattr(space, "model", None)).__name__ == "AutoencoderDC"


def _subfolder(space: Any) -> str:
    """The folder within a pipeline that an autoencoder was read from; '' for one of its own."""
    model = getattr(space, "model", None)
    name = "" if model is None else Path(str(model.config.get("_name_or_path", ""))).name
    return name if name == "vae" else ""


def _save(path: Path, module: nn.Module) -> None:
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path)


def _write_sana(folder: Path, net: SanaVelocity, state: ExportState) -> None:
    library = diffusers("Exporting a SANA")
    scheduler = library.FlowMatchEulerDiscreteScheduler(num_train_timesteps=state.steps)
    interval = 0.0 if state.instantaneous else 1 / state.steps
    transformer = fold_interval(net, interval, state.steps)
    pipeline = library.SanaPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=transformer, scheduler=scheduler
    )
    pipeline.save_pretrained(folder)
    if net.connector is not None:
        _save(folder / CONNECTOR, net.connector)


@torch.no_grad()
def fold_interval(net: SanaVelocity, interval: float, steps: int) -> nn.Module:
    """The network for intervals of one length, as diffusers' own SanaTransformer2DModel.

    Args:
        interval: t - r.
        steps: of the scheduler, whose times run from ``steps`` down to 1.
    """
    settings = {**(sana_config(net) or {}), "timestep_scale": net.scale / steps}
    made = diffusers("Exporting a SANA").SanaTransformer2DModel.from_config(settings)
    parts = net.transformer.state_dict()
    held = {
        name.replace("time_embed.end.", "time_embed.emb."): tensor
        for name, tensor in parts.items()
        if not name.startswith("time_embed.interval.")
    }
    bias = "time_embed.emb.timestep_embedder.linear_2.bias"
    split: Any = net.transformer.time_embed
    held[bias] = held[bias] + split.of_interval(torch.tensor([interval * net.scale]))[0]
    load_weights(made, held, "the SANA")
    plain: nn.Module = made.eval()
    return plain


EXAMPLE_DIT = '''\
"""Sample this model. Needs: pip install encbench. Use: python example.py "a red circle" """

import sys
from pathlib import Path

import torch
from encbench.flow.sample import load_sampler

sampler = load_sampler(Path(__file__).parent, torch.device("cpu"), steps={steps})
(image,) = sampler([sys.argv[1]], seeds=[0])
image.save("image.png")
'''

EXAMPLE_SANA = '''\
"""Sample this model. Needs: pip install "encbench[diffusers]". Use: python example.py "a cat" """

import sys
from pathlib import Path

import torch
from diffusers import AutoencoderDC, SanaPipeline
from encbench.flow.export import load_connector
from encbench.flow.features import PromptEncoder
from encbench.flow.sample import noise_of

folder, device = Path(__file__).parent, torch.device("cpu")
vae = AutoencoderDC.from_pretrained({autoencoder})
pipe = SanaPipeline.from_pretrained(folder, vae=vae, text_encoder=None, tokenizer=None).to(device)
encoder = PromptEncoder({spec!r}, None, device, {text_tokens})
(text,) = encoder.alone([sys.argv[1]])
tokens = load_connector(folder)(text.tokens[None].float())
noise = noise_of(0, (pipe.transformer.config.in_channels, *[{side} // pipe.vae_scale_factor] * 2))
result = pipe(
    prompt_embeds=tokens, prompt_attention_mask=torch.ones(tokens.shape[:2]), latents=noise[None],
    negative_prompt=None, num_inference_steps={steps}, guidance_scale=1.0, height={side},
    width={side}, use_resolution_binning=False,
)
result.images[0].save("image.png")
'''


def _example(state: ExportState) -> str:
    if state.network is not None:
        return EXAMPLE_DIT.format(steps=state.steps)
    source, _, revision = str(state.autoencoder).partition("@")
    named = {"revision": revision, "subfolder": state.subfolder}
    given = [repr(source), *(f"{key}={value!r}" for key, value in named.items() if value)]
    return EXAMPLE_SANA.format(
        autoencoder=", ".join(given), spec=state.encoder.spec, text_tokens=state.text_tokens,
        steps=state.steps, side=state.side,
    )  # fmt: skip


def _card(state: ExportState, name: str) -> str:
    """The model card: what it is, how to load it, and what it was trained on."""
    sana = state.network is None
    tags = ["text-to-image", "encbench", "flow-matching" if state.instantaneous else "meanflow"]
    head = {
        "library_name": "diffusers" if sana else "encbench",
        "pipeline_tag": "text-to-image",
        "tags": json.dumps(tags),
    }
    what = (
        "diffusers' `SanaTransformer2DModel` with a scheduler for "
        f"{state.steps} equal steps, and a connector for the text encoder's tokens"
        if sana
        else f"a {state.training['network']} diffusion transformer (`{WEIGHTS}`, `{CONFIG}`)"
    )
    parent = str(state.training["network"]).removeprefix("sana:")
    if sana and HUB_ID.fullmatch(parent):
        head["base_model"] = parent
    objective = "flow matching" if state.instantaneous else state.training.get("objective", "")
    rows = {
        "text encoder": f"`{state.encoder.spec}` (revision {state.encoder.revision[:12]})",
        "images": f"{state.side} px, "
        + (f"latents of `{state.autoencoder}`" if state.autoencoder else "pixels"),
        "sampling steps": f"{state.steps}" + (", no other number" if sana else ""),
        "trained": f"{state.step:,} steps of {state.training.get('batch')} images, {objective}",
        "data": f"{state.data.name} (sha256 {state.data.pin[:12]})",
    }
    if state.training.get("trainable") == "lora":
        rank = state.training.get("lora_rank", TrainConfig.lora_rank)
        rows["trained"] += f", LoRA of rank {rank}, merged into the weights"
    example = _example(state)
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    front = "\n".join(f"{key}: {value}" for key, value in head.items())
    return (
        f"---\n{front}\n---\n\n# {name}\n\nA few-step text-to-image model, trained by encbench: "
        f"{what}. The text encoder"
        f"{' and the autoencoder are' if state.autoencoder else ' is'} not in this folder: they "
        "are loaded by name, under their own licenses.\n\n"
        f"| | |\n|---|---|\n{table}\n\n```python\n{example}```\n"
    )
