"""Tiny random checkpoints, written just as published ones are: config, tokenizer, safetensors."""

from __future__ import annotations

import io
import json
import string
from pathlib import Path
from typing import Any

import torch

CORPUS = (
    "a photo of a brown dog and a red bicycle in front of a white house",
    "two small cats sleep on the blue sofa near the window",
    "a man rides a wave on top of a surfboard, while people look at him",
    "the kitchen has three green chairs; a table is set for dinner",
)


def _wordpiece() -> tuple[Any, int]:
    """BERT's tokenizer with a vocabulary of letters and the corpus's words; its size."""
    from transformers import BertTokenizer

    words = sorted({w.strip(",;.") for text in CORPUS for w in text.split()})
    letters = list(string.ascii_lowercase + string.digits + string.punctuation)
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    vocab += [f"##{c}" for c in string.ascii_lowercase + string.digits]
    vocab += [w for w in words if w not in vocab]
    return BertTokenizer(vocab={w: i for i, w in enumerate(vocab)}, model_max_length=64), len(vocab)


def _unigram(folder: Path, *, pad: str = "<pad>", extra_ids: int = 100) -> int:
    """T5's tokenizer.json (SigLIP's, without extra ids); its vocabulary size."""
    from transformers import T5Tokenizer

    words = sorted({"▁" + w.strip(",;.") for text in CORPUS for w in text.split()})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(w, -4.0 - 0.01 * i) for i, w in enumerate(words)]
    pieces += [(c, -8.0) for c in string.ascii_letters + string.digits + string.punctuation]
    tokenizer = T5Tokenizer(
        vocab=pieces, pad_token=pad, extra_ids=extra_ids, model_max_length=512 if extra_ids else 64
    )
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def sentencepiece(folder: Path) -> int:
    """T5's tokenizer as Google published it: spiece.model and tokenizer_config.json."""
    import sentencepiece as library

    folder.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20),
        model_writer=written,
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(written.getvalue())
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return 60 + 100


def _clip_tokenizer(folder: Path, model_max_length: int = 77) -> int:
    """OpenAI's vocabulary, as transformers publishes it (tokenizer.json); its size."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    simple = SimpleTokenizer()
    vocab = dict(simple.encoder)
    vocab["<|startoftext|>"] = vocab.pop("<start_of_text>")
    vocab["<|endoftext|>"] = vocab.pop("<end_of_text>")
    tokenizer = CLIPTokenizer(
        vocab=vocab, merges=list(simple.bpe_ranks), model_max_length=model_max_length
    )
    tokenizer.save_pretrained(folder)
    return len(vocab)


def _card(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Tiny\n")
    return folder


def plain_bert(folder: Path, vocab_size: int) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)


def sentence_bert(folder: Path, *, dense: bool = False) -> Path:
    """A BERT model of sentence-transformers with mean pooling, and a dense layer if asked for."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    torch.manual_seed(0)
    _card(folder)
    tokenizer, size = _wordpiece()
    plain = folder.parent / f"{folder.name}-plain"
    plain_bert(plain, size)
    tokenizer.save_pretrained(plain)
    parts: list[Any] = [modules.Transformer(str(plain), max_seq_length=48), modules.Pooling(32)]
    if dense:
        parts.append(modules.Dense(32, 24))
    SentenceTransformer(modules=[*parts, modules.Normalize()], device="cpu").save(
        str(folder), create_model_card=False
    )
    return folder


def static_words(folder: Path) -> Path:
    """A static-embedding model of sentence-transformers."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    torch.manual_seed(0)
    _card(folder)
    tokenizer, _ = _wordpiece()
    static = StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=16)
    SentenceTransformer(modules=[static], device="cpu").save(str(folder), create_model_card=False)
    return folder


def t5(
    folder: Path,
    *,
    kind: str = "v1_1",
    decoder: bool = False,
    diffusers: bool = False,
    spiece: bool = False,
) -> Path:
    """A T5 checkpoint: kind 'v1_1' (gated GELU), '1.0' (ReLU), 'mt5' or 'umt5'; the encoder
    alone or the full model; flat or in the folders of diffusers; its tokenizer as
    tokenizer.json or spiece.model."""
    import transformers

    torch.manual_seed(0)
    _card(folder)
    home = folder / "text_encoder_2" if diffusers else folder
    size = (sentencepiece if spiece else _unigram)(folder / "tokenizer_2" if diffusers else folder)
    prefix = {"v1_1": "T5", "1.0": "T5", "mt5": "MT5", "umt5": "UMT5"}[kind]
    config = getattr(transformers, f"{prefix}Config")(
        vocab_size=size + 4,  # published ones have more rows than tokens
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="relu" if kind == "1.0" else "gated-gelu",
        tie_word_embeddings=kind == "1.0",
        decoder_start_token_id=0,
    )
    whole = "ForConditionalGeneration" if decoder else "EncoderModel"
    getattr(transformers, prefix + whole)(config).save_pretrained(home)
    return folder


def _rename(path: Path, prefix: str) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(path)
    save_file({prefix + name: value for name, value in state.items()}, path, {"format": "pt"})


def clip(folder: Path, *, kind: str = "CLIPModel") -> Path:
    """A transformers CLIP checkpoint: CLIPModel, CLIPTextModel or CLIPTextModelWithProjection."""
    import transformers

    torch.manual_seed(0)
    _card(folder)
    size = _clip_tokenizer(folder)
    text = {
        "vocab_size": size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "projection_dim": 24,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    }
    if kind != "CLIPModel":
        model = getattr(transformers, kind)(transformers.CLIPTextConfig(**text))
        model.save_pretrained(folder)
        if kind == "CLIPTextModel":  # published ones carry the prefix that newer versions drop
            _rename(folder / "model.safetensors", "text_model.")
        return folder
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        "projection_dim": 24,
    }
    # as published for ViT-H: the text part repeats the default projection, which is not the model's
    config = transformers.CLIPConfig(
        text_config={**text, "projection_dim": 512}, vision_config=vision, projection_dim=24
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return folder


def open_clip(folder: Path, *, kind: str = "clip") -> Path:
    """An open_clip checkpoint (open_clip_config.json, open_clip_model.safetensors): 'clip'
    (causal, OpenAI's tokenizer), 'siglip' (bidirectional, padding attended, its own tokenizer),
    'coca', or 'bert' (a transformers model as text tower, whose files lie in FOLDER-text)."""
    import open_clip as library
    from safetensors.torch import save_file

    torch.manual_seed(0)
    _card(folder)
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
    text: dict[str, Any] = {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 32,
        "heads": 4,
        "layers": 3,
    }
    config: dict[str, Any] = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    mean = std = (0.5, 0.5, 0.5)
    if kind == "siglip":
        text |= {
            "context_length": 16,
            "vocab_size": _unigram(folder, pad="</s>", extra_ids=0),
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        }
        config |= {"init_logit_bias": -10, "custom_text": True}
    elif kind == "coca":
        text |= {"context_length": 76, "embed_cls": True, "output_tokens": True}
        vision |= {"attentional_pool": True, "output_tokens": True}
        cross = {"context_length": 76, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 1}
        config |= {"multimodal_cfg": cross, "custom_text": True}
    elif kind == "bert":
        base = folder.parent / f"{folder.name}-text"
        tokenizer, size = _wordpiece()
        plain_bert(base, size)
        tokenizer.save_pretrained(base)
        config["text_cfg"] = {
            "context_length": 20,
            "hf_model_name": str(base),
            "hf_tokenizer_name": str(base),
            "hf_proj_type": "mlp",
            "hf_pooler_type": "mean_pooler",
        }
    preprocess = {"size": [32, 32], "mean": mean, "std": std, "resize_mode": "squash"}
    written = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    model = library.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    if kind == "siglip":  # its initialization leaves pooled vectors that differ by 1e-4 only
        torch.nn.init.normal_(model.text.token_embedding.weight)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder
