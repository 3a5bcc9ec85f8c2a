"""A table of facts about published models, for use before anything is downloaded.

Entered by hand from the hub's file lists and model cards. Only the dry run and the docs use it; the
card in a run's records comes from the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class HubFacts(NamedTuple):
    """Facts about one model, or about the text encoder in one of its folders.

    Attributes:
        width: of its token features; '' = not shown in the docs.
        tokens: longest prompt in tokens, as its adapter reads it.
        license: as its model card names it.
        recipe: that its adapter applies by default.
        bytes: that encbench downloads of the repository (one set of weights and the tokenizer).
        parameters: that are used, for the estimate of time.
    """

    width: str = ""
    tokens: str = ""
    license: str = ""
    recipe: str = "plain"
    bytes: int | None = None
    parameters: int | None = None


MINI = HubFacts("128", "512", "Apache-2.0")

HUB_FACTS: Mapping[str, HubFacts] = {
    "sentence-transformers/all-MiniLM-L6-v2": HubFacts(
        "384", "256", "apache-2.0", bytes=91_000_000, parameters=22_700_000
    ),
    "BAAI/bge-small-en-v1.5": HubFacts(
        "384", "512", "mit", bytes=134_000_000, parameters=33_400_000
    ),
    "wkcn/TinyCLIP-ViT-8M-16-Text-3M-YFCC15M": HubFacts(
        "256", "77", "mit", bytes=95_000_000, parameters=15_200_000
    ),
    "BAAI/bge-base-en-v1.5": HubFacts("768", "512", "mit"),
    "intfloat/e5-base-v2": HubFacts("768", "512", "mit", "prompt text"),
    "Qwen/Qwen3-Embedding-0.6B": HubFacts("1024", "16384", "apache-2.0", "prompt query"),
    "ViT-L-14/openai": HubFacts("768", "77", "mit", parameters=123_000_000),
    "timm/vit_large_patch14_clip_224.openai": HubFacts(bytes=1_710_000_000),
    "ViT-B-16-SigLIP/webli": HubFacts("768", "64", "apache-2.0"),
    "openai/clip-vit-large-patch14": HubFacts("768", "77", "mit", bytes=1_710_000_000),
    "stabilityai/stable-diffusion-xl-base-1.0/text_encoder_2": HubFacts("1280", "77", "openrail++"),
    "google/flan-t5-xl": HubFacts("2048", "512", "apache-2.0"),
    "google/t5-v1_1-xxl": HubFacts("4096", "512", "apache-2.0", bytes=44_500_000_000),
    "google/umt5-xxl": HubFacts("4096", "512", "apache-2.0"),
    "PixArt-alpha/PixArt-XL-2-1024-MS": HubFacts(bytes=19_060_000_000, parameters=4_760_000_000),
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS/text_encoder": HubFacts("4096", "300", "openrail++"),
    "black-forest-labs/FLUX.1-schnell/text_encoder_2": HubFacts("4096", "512", "apache-2.0"),
    "google/gemma-2-2b-it": HubFacts(
        "2304", "300", "gemma", bytes=5_250_000_000, parameters=2_610_000_000
    ),
    "google/gemma-3-4b-it": HubFacts("2560", "512", "gemma"),
    "Efficient-Large-Model/Sana_1600M_1024px_diffusers/text_encoder": HubFacts(
        "2304", "300", "gemma"
    ),
    "Qwen/Qwen3-1.7B": HubFacts("2048", "512", "apache-2.0"),
    "Qwen/Qwen2.5-VL-3B-Instruct": HubFacts("2048", "512", "qwen-research"),
    "meta-llama/Llama-3.2-1B": HubFacts("2048", "512", "llama3.2"),
    "BLIP3o/BLIP3o-NEXT-SFT-3B": HubFacts(
        "2048", "1024", "apache-2.0", "blip3o", bytes=10_000_000_000, parameters=1_720_000_000
    ),
    "BLIP3o/BLIP3o-NEXT-GRPO-Geneval-3B": HubFacts("2048", "1024", "apache-2.0", "blip3o"),
    "stabilityai/stable-diffusion-3.5-large": HubFacts(
        "4096", "77 + 256", "stabilityai-community", "sd3"
    ),
    "black-forest-labs/FLUX.1-schnell": HubFacts("4096", "512", "apache-2.0", "flux"),
    "wusize/openuni/openuni_l_internvl3_2b_sana_1_6b_512_hf_blip3o60k.pth": HubFacts(
        "1536", "512", "NTU S-Lab", "openuni"
    ),
    "wusize/openuni/openuni_b_internvl3_1b_sana_0_6b_512_hf_blip3o60k.pth": HubFacts(
        "896", "512", "NTU S-Lab", "openuni"
    ),
    "city96/t5-v1_1-xxl-encoder-gguf/t5-v1_1-xxl-encoder-Q5_K_M.gguf": HubFacts(
        "4096", "512", "apache-2.0"
    ),
    "unsloth/gemma-3-270m-it-GGUF/gemma-3-270m-it-Q8_0.gguf": HubFacts("640", "512", "gemma"),
    "timm/vit_large_patch16_dinov3.lvd1689m": HubFacts(bytes=1_210_000_000, parameters=303_000_000),
    "facebook/dinov2-large": HubFacts(bytes=1_220_000_000, parameters=304_000_000),
    "mini-clip": MINI._replace(tokens="77"),
    "mini-t5": MINI,
    "mini-gemma": MINI,
    "mini-blip3o": MINI._replace(tokens="616", recipe="blip3o"),
}
"""By source, or by source and subfolder."""


def facts_of(source: str) -> HubFacts:
    """What is known of a source; nothing if it is not in the table."""
    return HUB_FACTS.get(source, HubFacts())
