"""Tiny random checkpoints of what images are scored by, written just as published ones are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from checkpoints import clip

WORDS = """
<pad> <unk> <s> </s> <image> yes no Yes No user assistant : ? . Is Are there a an in the image
exactly two three dog dogs cat red blue left of Answer with or
"""
TINY_HPS = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8},
    "text_cfg": {
        "context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2,
    },
}  # fmt: skip


def agreeing_clip(folder: Path) -> Path:
    """A CLIP for which prompts and images agree: random ones have all cosines of one sign, and
    CLIPScore is 0 below it."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(clip(folder))
    with torch.no_grad():
        pixels = torch.zeros(1, 3, 32, 32)
        out = model(input_ids=torch.tensor([[49406, 320, 49407]]), pixel_values=pixels)
        if (out.text_embeds * out.image_embeds).sum() < 0:
            model.visual_projection.weight.neg_()
    model.save_pretrained(folder)
    return folder


def pickscore(folder: Path) -> Path:
    """PickScore's layout: a transformers CLIP, here with tokenizer and preprocessing beside it."""
    return clip(folder)


def tiny_open_clip(folder: Path) -> str:
    """Register a tiny architecture in open_clip; its name."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny-hps.json").write_text(json.dumps(TINY_HPS))
    open_clip.add_model_config(folder / "tiny-hps.json")
    return "tiny-hps"


def hps(folder: Path, arch: str) -> tuple[Path, str]:
    """HPS v2.1's file (a pickle with 'state_dict' among other things), and its md5."""
    import open_clip

    torch.manual_seed(1)
    model = open_clip.create_model(arch)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "HPS_v2.1_compressed.pt"
    torch.save({"epoch": 1, "name": "x", "state_dict": model.state_dict()}, path)
    return path, hashlib.md5(path.read_bytes()).hexdigest()


def llava(folder: Path) -> Path:
    """A LLaVA with a CLIP vision tower, a Llama and a chat template; words are its tokens."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(2)
    words = WORDS.split()
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", bos_token="<s>",
        eos_token="</s>", additional_special_tokens=["<image>"],
    )  # fmt: skip
    template = (
        "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
    )
    images = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor = transformers.LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default",
        chat_template=template, image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        image_size=32, patch_size=8,
    )  # fmt: skip
    text = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, bos_token_id=2,
        eos_token_id=3, initializer_range=0.2,
    )  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=words.index("<image>"),
        vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    transformers.LlavaForConditionalGeneration(config).eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def inception(folder: Path, monkeypatch: Any) -> tuple[Path, str]:
    """The Inception weights' file, random, and its sha256."""
    from torch_fidelity import feature_extractor_inceptionv3 as library

    from encbench.metrics.inception import FILE

    torch.manual_seed(3)
    with monkeypatch.context() as patch:
        patch.setattr(library, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *a, **k: None)
        net = library.FeatureExtractorInceptionV3("x", ["2048"])
    for module in net.modules():  # else features vanish, and everything equals everything
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), folder / FILE)
    return folder, hashlib.sha256((folder / FILE).read_bytes()).hexdigest()
