"""A tiny random Mask2Former, written just as published ones are."""

from __future__ import annotations

from pathlib import Path

import torch

from encbench.data.geneval import CLASSES

COCO_WORDS = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
COCO_NAMES = [COCO_WORDS.get(name, name) for name in CLASSES]


def mask2former(
    folder: Path,
    *,
    names: list[str] | None = None,
    size: dict[str, int] | None = None,
    confident: bool = True,
) -> Path:
    """A Mask2Former with a Swin backbone, its config, processor and safetensors.

    Args:
        names: of the classes; COCO's by default.
        size: of the processor; 64 x 64 by default (published: 384 x 384).
        confident: class scores spread so far that some objects pass the thresholds.
    """
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    torch.manual_seed(0)
    names = names or COCO_NAMES
    backbone = SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=2,
        num_queries=12,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    if confident:
        with torch.no_grad():
            model.class_predictor.weight.mul_(60)
            for query in (
                model.model.transformer_module.queries_features,
                model.model.transformer_module.queries_embedder,
            ):
                query.weight.mul_(3)
    model.save_pretrained(folder)
    Mask2FormerImageProcessor(size=size or {"height": 64, "width": 64}).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: other\n---\n")
    return folder
