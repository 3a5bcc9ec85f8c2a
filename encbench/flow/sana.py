"""SANA (arXiv 2410.10629, 2501.18427) as a MeanFlow network: diffusers' SanaTransformer2DModel,
pretrained by flow matching, that also hears of the interval [r, t] (EMF, section 3.2).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..data.hub import resolve_model
from ..errors import MissingLibraryError, ModelError, UsageError, first_line
from ..schema import read_model_config
from .connector import Connector
from .meanflow import Condition

Trainable = Literal["emf", "all", "connector"]
PATTERNS = (
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "transformer/diffusion_pytorch_model-*-of-*.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "config.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model-*-of-*.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
)
TIME_SCALE = 1000.0
"""SANA was trained on t times its scheduler's 1,000 steps (and its own ``timestep_scale``)."""


class SplitTime(nn.Module):
    """SANA's time embedding in two: emb(t) + emb'(t - r) - emb'(0), emb' a copy of emb.

    EMF adds two copies, which doubles the embedding at r = t. Taking off the copy's value at 0
    leaves the parent's network there, at the start and all through training.

    Args:
        parent: diffusers' AdaLayerNormSingle.
    """

    def __init__(self, parent: Any) -> None:
        super().__init__()
        self.end = parent.emb
        self.interval = copy.deepcopy(parent.emb)
        self.linear = parent.linear

    def forward(
        self,
        timestep: Float[Tensor, "B 2"],
        batch_size: int | None = None,
        hidden_dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``timestep``: t and t - r, both in the parent's units. Called by diffusers."""
        end, gap = timestep.unbind(1)

        def embed(part: Any, time: Tensor) -> Tensor:
            embedding: Tensor = part(
                time, None, None, batch_size=len(time), hidden_dtype=hidden_dtype
            )
            return embedding

        c = embed(self.end, end) + embed(self.interval, gap)
        c = c - embed(self.interval, torch.zeros_like(gap[:1]))
        return self.linear(nn.functional.silu(c)), c


class SanaVelocity(nn.Module):
    """A VelocityNet around a SanaTransformer2DModel; it predicts u.

    Args:
        transformer: as diffusers loads it; taken over and changed.
        cond_dim: width of the encoder's tokens; None = the encoder is SANA's own (Gemma by
            SANA's recipe), whose tokens go in as they are, without a connector.

    Raises:
        UsageError: if the transformer is one of SANA-Sprint, with a guidance embedding.
    """

    prediction: Literal["u"] = "u"
    velocity_head = False

    def __init__(self, transformer: nn.Module, cond_dim: int | None) -> None:
        super().__init__()
        config: Any = transformer.config
        if config.guidance_embeds:
            raise UsageError(
                "this transformer has a guidance embedding: it is a distilled SANA-Sprint, not a "
                "flow-matching model; begin with one of SANA or SANA-1.5"
            )
        self.cond_dim = cond_dim or config.caption_channels
        self.shape = (config.in_channels, config.sample_size, config.sample_size)
        self.scale = TIME_SCALE * config.timestep_scale
        self.connector = Connector(cond_dim, config.caption_channels) if cond_dim else None
        self.transformer = transformer
        self.transformer.time_embed = SplitTime(transformer.time_embed)

    def forward(
        self,
        z: Float[Tensor, "B C H W"],
        r: Float[Tensor, " B"],
        t: Float[Tensor, " B"],
        cond: Condition,
    ) -> Float[Tensor, "B C H W"]:
        """Average velocity over [r, t], r <= t in [0, 1].

        Raises:
            UsageError: if the condition has another width, or the latent other channels.
        """
        if z.shape[1] != self.shape[0]:
            raise UsageError(
                f"this SANA works on latents of {self.shape[0]} channels, not {z.shape[1]}: "
                "use the autoencoder that it was trained with"
            )
        out: Tensor = self.transformer(
            z,
            encoder_hidden_states=self._tokens(cond),
            timestep=torch.stack([t, t - r], 1) * self.scale,
            encoder_attention_mask=cond.mask,
            return_dict=False,
        )[0]
        return out

    def _tokens(self, cond: Condition) -> Float[Tensor, "B L W"]:
        if self.connector is not None:
            tokens: Tensor = self.connector(cond.tokens)
            return tokens
        if cond.tokens.shape[-1] != self.cond_dim:
            raise UsageError(
                f"the text features are {cond.tokens.shape[-1]} wide, but this SANA takes "
                f"{self.cond_dim}; give it a connector (cond_dim) for another encoder"
            )
        return cond.tokens

    def train_only(self, part: str) -> list[nn.Parameter]:
        """Freeze the rest; the parameters to train.

        Args:
            part: 'emf' (transformer blocks and time embeddings, and the connector
                if there is one), 'connector' or 'all'.

        Raises:
            UsageError: if there is no such part.
        """
        if part not in get_args(Trainable):
            raise UsageError(f"unknown part '{part}'; known: {', '.join(get_args(Trainable))}")
        if part == "connector" and self.connector is None:
            raise UsageError("this SANA has no connector to train; give cond_dim")
        heads = {
            "emf": (
                "connector.",
                "transformer.transformer_blocks.",
                "transformer.time_embed.",
            ),
            "connector": ("connector.",),
            "all": ("",),
        }[part]
        for name, weight in self.named_parameters():
            weight.requires_grad_(name.startswith(heads))
        return [weight for weight in self.parameters() if weight.requires_grad]

    def backbone_state(self) -> dict[str, Tensor]:
        """All weights but the connector's."""
        state = self.state_dict()
        return {name: state[name] for name in state if not name.startswith("connector.")}


def load_sana(source: str, cond_dim: int | None, revision: str | None = None) -> SanaVelocity:
    """A pretrained SANA from a folder or the hub: a pipeline's, with the folder transformer/, or
    the transformer alone. Safetensors only.

    Raises:
        MissingLibraryError: if diffusers is not installed.
        ModelError: if the folder holds no SanaTransformer2DModel, or a damaged one.
        UsageError: if it is one of SANA-Sprint.
        DownloadError: if the hub cannot be reached.
    """
    model = diffusers("A pretrained SANA").SanaTransformer2DModel
    resolved = resolve_model(source, revision, patterns=PATTERNS)
    return SanaVelocity(load_diffusers_part(model, resolved.folder, "transformer"), cond_dim)


def diffusers(what: str) -> Any:
    """The library, imported when it is needed.

    Raises:
        MissingLibraryError: with the line for pip.
    """
    try:
        import diffusers as library
    except ImportError as error:
        raise MissingLibraryError("diffusers", "encbench[diffusers]", what) from error
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    return library


def load_diffusers_part(model: Any, folder: Path, name: str) -> Any:
    """One of diffusers' models, from the folder of its name in a pipeline or a folder of its own.

    Raises:
        ModelError: naming the folder, if it is of another class, has no safetensors, or its
            weights do not fit its configuration.
    """
    home = folder / name if (folder / name / "config.json").is_file() else folder
    said = read_model_config(home).get("_class_name", "nothing")
    if said != model.__name__:
        raise ModelError(f"{home} holds no {model.__name__} (its config.json says: {said})")
    if not list(home.glob("[!.]*.safetensors")):
        raise ModelError(f"{home} holds no safetensors weights; pickled ones are not read")
    try:
        net, info = model.from_pretrained(
            home,
            local_files_only=True,
            use_safetensors=True,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # whatever diffusers finds wrong, the folder is to blame
        raise ModelError(f"diffusers cannot load {home}: {first_line(error)}") from error
    wrong = sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
    if wrong:
        raise ModelError(
            f"{home}: {wrong[0]} is missing or unknown ({len(wrong)} such in all); the weights do "
            "not fit config.json"
        )
    return net
