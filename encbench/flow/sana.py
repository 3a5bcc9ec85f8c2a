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
from .lora import ADAPTER, add_adapters
from .meanflow import Condition

Trainable = Literal["emf", "all", "lora", "connector"]
Times = Literal["scaled", "unscaled", "rescaled"]
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
    """SANA's time embedding in two, emb' a copy of emb.

    ============  ====================================  ===========================================
    ``scaled``    emb(1000 t) + emb'(1000 (t - r)) - c   the parent's network at r = t, at the start
                                                        and all through training; du/dt is steep
    ``unscaled``  emb(t) + emb'(t - r)                  EMF's code: another network than the parent,
                                                        with a small du/dt
    ``rescaled``  emb(t) + emb'(t - r) - c              the idea of SANA-Sprint (arXiv 2503.09641):
                                                        emb's last layer is fitted to the parent's
                                                        emb(1000 t); begin with flow matching
    ============  ====================================  ===========================================

    where c = emb'(0), and times enter in these units.

    Args:
        parent: diffusers' AdaLayerNormSingle.
        scale: what t is multiplied by in the parent.
    """

    def __init__(self, parent: Any, times: str, scale: float = TIME_SCALE) -> None:
        super().__init__()
        self.end, self.linear = parent.emb, parent.linear
        self.from_zero = times != "unscaled"
        if times == "rescaled":
            _fit_rescaled(self.end, scale)
        self.interval = copy.deepcopy(parent.emb)

    def forward(
        self,
        timestep: Float[Tensor, "B 2"],
        batch_size: int | None = None,
        hidden_dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``timestep``: t and t - r, both in the parent's units. Called by diffusers."""
        end, gap = timestep.unbind(1)
        c = _embed(self.end, end, hidden_dtype) + self.of_interval(gap, hidden_dtype)
        return self.linear(nn.functional.silu(c)), c

    def of_interval(
        self, gap: Float[Tensor, " B"], dtype: torch.dtype | None = None
    ) -> Float[Tensor, "B W"]:
        """What an interval t - r, in the parent's units, adds to the embedding of its end."""
        added = _embed(self.interval, gap, dtype)
        if self.from_zero:
            added = added - _embed(self.interval, torch.zeros_like(gap[:1]), dtype)
        return added


def _embed(part: Any, time: Float[Tensor, " B"], dtype: torch.dtype | None = None) -> Tensor:
    embedding: Tensor = part(time, None, None, batch_size=len(time), hidden_dtype=dtype)
    return embedding


@torch.no_grad()
def _fit_rescaled(part: Any, scale: float, points: int = 1025, ridge: float = 1e-4) -> None:
    """Make emb(t) as near to what emb(scale t) was as its last layer can (ridge regression)."""
    last = part.timestep_embedder.linear_2
    times = torch.linspace(0, 1, points, device=last.weight.device)
    wanted = _embed(part, scale * times, last.weight.dtype).double()
    seen: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, given: seen.append(given[0].double()))
    _embed(part, times, last.weight.dtype)
    hook.remove()
    mean, center = seen[0].mean(0), wanted.mean(0)
    x = seen[0] - mean
    gram = x.T @ x
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=x.device)
    weight = torch.linalg.solve(gram, x.T @ (wanted - center))
    last.weight.copy_(weight.T)
    last.bias.copy_(center - mean @ weight)


class SanaVelocity(nn.Module):
    """A VelocityNet around a SanaTransformer2DModel; it predicts u.

    Args:
        transformer: as diffusers loads it; taken over and changed.
        cond_dim: width of the encoder's tokens; None = the encoder is SANA's own (Gemma by
            SANA's recipe), whose tokens go in as they are, without a connector.
        times: how r and t enter; see :class:`SplitTime`.

    Raises:
        UsageError: if the transformer is one of SANA-Sprint, with a guidance embedding.
    """

    prediction: Literal["u"] = "u"
    velocity_head = False

    def __init__(self, transformer: nn.Module, cond_dim: int | None, times: str) -> None:
        super().__init__()
        config: Any = transformer.config
        if config.guidance_embeds:
            raise UsageError(
                "this transformer has a guidance embedding: it is a distilled SANA-Sprint, not a "
                "flow-matching model; begin with one of SANA or SANA-1.5"
            )
        self.cond_dim = cond_dim or config.caption_channels
        self.shape = (config.in_channels, config.sample_size, config.sample_size)
        scale = TIME_SCALE * config.timestep_scale
        self.scale = scale if times == "scaled" else 1.0
        self.connector = Connector(cond_dim, config.caption_channels) if cond_dim else None
        self.transformer = transformer
        self.transformer.time_embed = SplitTime(transformer.time_embed, times, scale)

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

    def train_only(self, part: str, rank: int = 16) -> list[nn.Parameter]:
        """Freeze the rest; the parameters to train.

        Args:
            part: 'emf' (transformer blocks, time embeddings and the final scale and shift, as
                EMF's code, and the connector if there is one), 'lora' (adapters, which are added,
                and the connector), 'connector' or 'all'.
            rank: of the adapters.

        Raises:
            UsageError: if there is no such part, or it can't have adapters of this rank.
            MissingLibraryError: if peft is not installed for 'lora'.
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
                "transformer.scale_shift_table",
            ),
            "connector": ("connector.",),
            "lora": ("connector.",),
            "all": ("",),
        }[part]
        if part == "lora":
            add_adapters(self.transformer, rank)
        for name, weight in self.named_parameters():
            weight.requires_grad_(name.startswith(heads) or (part == "lora" and ADAPTER in name))
        return [weight for weight in self.parameters() if weight.requires_grad]

    def backbone_state(self) -> dict[str, Tensor]:
        """All weights but the connector's."""
        state = self.state_dict()
        return {name: state[name] for name in state if not name.startswith("connector.")}


def load_sana(
    source: str, cond_dim: int | None, revision: str | None = None, *, times: str
) -> SanaVelocity:
    """A pretrained SANA from a folder or the hub: a pipeline's, with the folder transformer/, or
    the transformer alone. Safetensors only.

    Args:
        times: how r and t enter; see :class:`SplitTime`.

    Raises:
        MissingLibraryError: if diffusers is not installed.
        ModelError: if the folder holds no SanaTransformer2DModel, or a damaged one.
        UsageError: if it is one of SANA-Sprint.
        DownloadError: if the hub cannot be reached.
    """
    model = diffusers("A pretrained SANA").SanaTransformer2DModel
    resolved = resolve_model(source, revision, patterns=PATTERNS)
    part = load_diffusers_part(model, resolved.folder, "transformer")
    return SanaVelocity(part, cond_dim, times)


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
    except Exception as error:  # any error of diffusers is about the folder
        raise ModelError(f"diffusers cannot load {home}: {first_line(error)}") from error
    wrong = sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
    if wrong:
        raise ModelError(
            f"{home}: {wrong[0]} is missing or unknown ({len(wrong)} such in all); the weights do "
            "not fit config.json"
        )
    return net
