"""Tiny random checkpoints of decoder-only language models, written just as published ones are."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path
from typing import Any

import checkpoints
import torch
from checkpoints import CORPUS

CHATML = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content"
    " + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
IMAGE_TOKENS = 40
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "initializer_range": 0.1,
}


def qwen_tokenizer(folder: Path, *, extra: tuple[str, ...] = (), chat: bool = True) -> Any:
    """Qwen's tokenizer (bytes, no BOS) with a small vocabulary and its chat template."""
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        [*CORPUS, string.printable], vocab_size=400, show_progress=False
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(list(extra))
    tokenizer.chat_template = CHATML if chat else None
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(folder)
    return tokenizer


def gemma_tokenizer(folder: Path) -> Any:
    """Gemma's tokenizer (byte fallback, BOS) with a small vocabulary, SANA's instruction in it."""
    from transformers import GemmaTokenizer

    from encbench.encoders.recipes import SANA_INSTRUCTION

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces += ["\u2581", *string.ascii_letters, *string.digits, *string.punctuation]
    merges = []
    for word in sorted(
        {w.strip(",;.") for text in (*CORPUS, SANA_INSTRUCTION) for w in text.split()}
    ):
        left = "\u2581"
        for letter in word:
            if left + letter not in pieces:
                merges.append((left, letter))
                pieces.append(left + letter)
            left += letter
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = GemmaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _settled(model: Any, folder: Path) -> Path:
    """Norms that are not the identity, so that leaving one out shows; then the files."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name and value.ndim == 1:
                value += 0.2 * torch.randn_like(value)
    model.save_pretrained(folder)
    return checkpoints._card(folder)


def qwen3(folder: Path, *, sharded: bool = False) -> Path:
    import transformers

    torch.manual_seed(0)
    size = len(qwen_tokenizer(folder))
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(vocab_size=size, **TEXT))
    if sharded:
        model.save_pretrained(folder, max_shard_size="60KB")
        assert (folder / "model.safetensors.index.json").is_file()
        return checkpoints._card(folder)
    return _settled(model, folder)


def llama(folder: Path) -> Path:
    """Llama 3's kind: a byte-level tokenizer whose post-processor puts a BOS before the prompt."""
    import transformers
    from tokenizers import processors

    torch.manual_seed(1)
    tokenizer = qwen_tokenizer(folder, extra=("<|begin_of_text|>",))
    bos = "<|begin_of_text|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
    )
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": "<|endoftext|>",
        "padding_side": "left",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), **TEXT)
    return _settled(transformers.LlamaForCausalLM(config), folder)


def gemma(folder: Path, *, kind: str = "gemma2") -> Path:
    """Gemma 1 ('gemma'), 2 ('gemma2') or 3 ('gemma3_text'; 'gemma3' with its vision tower)."""
    import transformers

    torch.manual_seed(2)
    size = len(gemma_tokenizer(folder))
    text = {**TEXT, "vocab_size": size, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    if kind == "gemma":
        return _settled(transformers.GemmaForCausalLM(transformers.GemmaConfig(**text)), folder)
    text |= {"query_pre_attn_scalar": 8, "sliding_window": 16}
    if kind == "gemma2":
        return _settled(transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**text)), folder)
    if kind == "gemma3_text":
        config = transformers.Gemma3TextConfig(**text)
        return _settled(transformers.Gemma3ForCausalLM(config), folder)
    both = transformers.Gemma3Config(
        text_config=text,
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
        image_token_index=size - 1,
    )
    return _settled(transformers.Gemma3ForConditionalGeneration(both), folder)


def qwen_vl(folder: Path, *, kind: str = "qwen2_5_vl") -> Path:
    """A Qwen-VL: 'qwen2_5_vl' or 'qwen3_vl'."""
    import transformers

    torch.manual_seed(3)
    size = len(qwen_tokenizer(folder))
    text = {**TEXT, "vocab_size": size}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    if kind == "qwen2_5_vl":
        del text["head_dim"]
        config = transformers.Qwen2_5_VLConfig(
            text_config={**text, "rope_parameters": rope},
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_heads": 2,
                "out_hidden_size": 32,
                "fullatt_block_indexes": [0],
            },
        )
        return _settled(transformers.Qwen2_5_VLForConditionalGeneration(config), folder)
    config = transformers.Qwen3VLConfig(
        text_config={**text, "rope_parameters": {**rope, "mrope_interleaved": True}},
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
        },
    )
    return _settled(transformers.Qwen3VLForConditionalGeneration(config), folder)


def blip3o(
    folder: Path,
    *,
    kind: str = "blip3o_qwen_inference",
    sharded: bool = False,
    tied: bool = True,
    extra: int = 64,
) -> Path:
    """BLIP3o-NEXT's layout: a Qwen3 language model whose vocabulary goes on with image tags, scale
    tokens and image tokens, and beside it the connector, the diffusion transformer, its
    autoencoder and a vision tower.

    Args:
        extra: side of the matrices that stand for the other modules.
    """
    import transformers
    from safetensors.torch import load_file, save_file

    torch.manual_seed(4)
    scales = tuple(f"<S{i}>" for i in range(3))
    images = tuple(f"<I{i}>" for i in range(IMAGE_TOKENS))
    tokenizer = qwen_tokenizer(folder, extra=("<im_start>", "<im_end>", *scales, *images))
    size = len(tokenizer)
    config = transformers.Qwen3Config(vocab_size=size, tie_word_embeddings=tied, **TEXT)
    model = transformers.Qwen3ForCausalLM(config)
    with torch.no_grad():  # image tokens that are not all equally likely
        model.get_output_embeddings().weight.mul_(2)
    _settled(model, folder)
    state = load_file(folder / "model.safetensors")
    width = 24
    more = {
        "model.diffusion_connector.0.weight": (width, 32),
        "model.diffusion_connector.0.bias": (width,),
        "model.diffusion_connector.2.weight": (width, width),
        "model.diffusion_connector.2.bias": (width,),
        "model.diffusion_connector.3.weight": (width,),
        "model.sana.transformer_blocks.0.attn1.to_q.weight": (extra, extra),
        "model.sana.time_embed.linear.weight": (extra, extra),
        "model.sana_vae.encoder.conv_in.weight": (extra, 3, 3, 3),
        "model.vision_tower.vision_tower.embed_tokens.weight": (extra, extra),
        "model.vision_tower.layers.0.norm.weight": (extra,),
    }
    state |= {name: torch.randn(shape) / 4 for name, shape in more.items()}
    if sharded:  # keys of one module in different files, as they fall
        (folder / "model.safetensors").unlink()
        names = sorted(state)
        files = {n: f"model-{1 + i % 3:05d}-of-00003.safetensors" for i, n in enumerate(names)}
        for file in sorted(set(files.values())):
            part = {n: state[n] for n in names if files[n] == file}
            save_file(part, folder / file, {"format": "pt"})
        index = {"metadata": {"total_size": 0}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    ids = tokenizer.convert_tokens_to_ids
    written |= {
        "architectures": ["blip3oQwenForInferenceLM"],
        "model_type": kind,
        "image_start_tag_id": ids("<im_start>"),
        "image_end_tag_id": ids("<im_end>"),
        "image_start_token_id": ids("<I0>"),
        "image_end_token_id": ids(images[-1]),
        "scale_start_token_id": ids("<S0>"),
        "num_image_tokens": IMAGE_TOKENS,
        "diffusion_name_or_path": "Efficient-Large-Model/Sana_1600M_512px_diffusers",
        "mm_vision_tower": "google/siglip2-so400m-patch14-384",
    }
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def pipeline(folder: Path, *, kind: str = "sd3") -> Path:
    """The text encoders of a diffusers pipeline, 'sd3' or 'flux', in its folders."""
    import transformers

    torch.manual_seed(5)
    clip: dict[str, Any] = {
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "projection_dim": 12,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "initializer_range": 0.1,
    }
    clips = {"sd3": ("", "_2"), "flux": ("",)}[kind]
    for end, width in zip(clips, (16, 24), strict=False):
        size = checkpoints._clip_tokenizer(folder / f"tokenizer{end}")
        if end:  # OpenCLIP's bigG is padded with '!', OpenAI's ViT-L with its end-of-text token
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer_2")
            tokenizer.pad_token = "!"
            tokenizer.save_pretrained(folder / "tokenizer_2")
        config = transformers.CLIPTextConfig(vocab_size=size, hidden_size=width, **clip)
        name = "CLIPTextModelWithProjection" if kind == "sd3" else "CLIPTextModel"
        _settled(getattr(transformers, name)(config), folder / f"text_encoder{end}")
    last = {"sd3": "_3", "flux": "_2"}[kind]
    config = transformers.T5Config(
        vocab_size=checkpoints._unigram(folder / f"tokenizer{last}"),
        d_model=48,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    transformers.T5EncoderModel(config).save_pretrained(folder / f"text_encoder{last}")
    name = {"sd3": "StableDiffusion3Pipeline", "flux": "FluxPipeline"}[kind]
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
    return checkpoints._card(folder)


def gguf_gemma(path: Path) -> Path:
    """Gemma 3 as llama.cpp writes it: matrices in Q8_0, norms plus 1, the tokenizer inside."""
    import gguf
    import transformers

    torch.manual_seed(2)
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    kinds = [3, 3, 3, 2, *[6] * 256]  # control, unknown, byte
    words = sorted({w.strip(",;.") for text in CORPUS for w in text.split()})
    starts = {"\u2581" + word[:n] for word in words for n in range(1, len(word) + 1)}
    letters = ["\u2581", *string.ascii_letters, *string.digits, *string.punctuation]
    normal = [*letters, *sorted(starts, key=lambda piece: (len(piece), piece))]
    pieces, kinds = pieces + normal, kinds + [1] * len(normal)
    config = transformers.Gemma3TextConfig(
        vocab_size=len(pieces),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        sliding_window=512,
        max_position_embeddings=4096,
        initializer_range=0.1,
    )
    state = transformers.Gemma3ForCausalLM(config).state_dict()
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_name("tiny gemma")
    writer.add_license("mit")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(config.sliding_window)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(i) for i in range(len(pieces))])
    writer.add_token_types(kinds)
    for add, number in (("pad", 0), ("eos", 1), ("bos", 2), ("unk", 3)):
        getattr(writer, f"add_{add}_token_id")(number)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    for name, value in state.items():
        if name == "lm_head.weight":  # tied
            continue
        stored = names.get_name(name.removesuffix(".weight")) + ".weight"
        if value.ndim == 1:
            writer.add_tensor(stored, (value + 0.2 * torch.randn_like(value) + 1).numpy())
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            blocks = gguf.quantize(value.numpy(), kind)
            writer.add_tensor(stored, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_t5(path: Path, folder: Path) -> Path:
    """The encoder of a folder's T5 v1.1 as llama.cpp writes it: every tensor in F32."""
    import gguf
    import transformers
    from safetensors.torch import load_file

    config = transformers.T5Config.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pieces = [tokenizer.convert_ids_to_tokens(i) or f"[PAD{i}]" for i in range(config.vocab_size)]
    pieces = [re.sub(r"<extra_id_(\d+)>", r"[PAD\1]", piece) for piece in pieces]
    scored = dict(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    writer = gguf.GGUFWriter(path, "t5encoder")
    writer.add_name("tiny t5")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(512)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.num_heads)
    writer.add_key_length(config.d_kv)
    writer.add_value_length(config.d_kv)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_relative_attn_buckets_count(config.relative_attention_num_buckets)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_scores([scored.get(piece, -10000.0) for piece in pieces])
    kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}
    writer.add_token_types([kinds.get(p, 5 if p.startswith("[PAD") else 1) for p in pieces])
    for add, number in (("pad", 0), ("eos", 1), ("unk", 2)):
        getattr(writer, f"add_{add}_token_id")(number)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(True)
    writer.add_add_space_prefix(True)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, config.num_layers)
    for name, value in load_file(folder / "model.safetensors").items():
        if name != "encoder.embed_tokens.weight":  # tied
            stored = names.get_name(name.removesuffix(".weight")) + ".weight"
            writer.add_tensor(stored, value.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def internvl(folder: Path) -> Path:
    """InternVL3 as its authors publish it: a Qwen2 language model, code of its own, a vision tower
    (here one tensor, which is not to be read)."""
    import transformers
    from safetensors.torch import save_file

    torch.manual_seed(3)
    size = len(qwen_tokenizer(folder, extra=("<img>", "</img>")))
    shape = {k: v for k, v in TEXT.items() if k != "head_dim"}
    config = transformers.Qwen2Config(vocab_size=size, **shape)
    state = transformers.Qwen2ForCausalLM(config).state_dict()
    state.pop("lm_head.weight")
    whole = {f"language_model.{name}": value for name, value in state.items()}
    whole["vision_model.embeddings.class_embedding"] = torch.zeros(1, 1, 8)
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    written = {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
        "llm_config": config.to_dict() | {"architectures": ["Qwen2ForCausalLM"]},
    }
    (folder / "config.json").write_text(json.dumps(written))
    return checkpoints._card(folder)


def openuni(path: Path, *, order: str = "enc_proj", queries: int = 6) -> Path:
    """What OpenUni publishes beside a base of width 32: queries, connector, projector, and a
    diffusion transformer (here one tensor)."""
    torch.manual_seed(4)
    width, inner = 32, 32 if order == "enc_proj" else 48
    state = {"meta_queries": torch.randn(queries, width) / width**0.5}
    for layer in range(2):
        start = f"connector.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            state[f"{start}.self_attn.{name}.weight"] = torch.randn(inner, inner) / inner**0.5
            state[f"{start}.self_attn.{name}.bias"] = 0.1 * torch.randn(inner)
        for name, rows, columns in (("fc1", 64, inner), ("fc2", inner, 64)):
            state[f"{start}.mlp.{name}.weight"] = torch.randn(rows, columns) / columns**0.5
            state[f"{start}.mlp.{name}.bias"] = 0.1 * torch.randn(rows)
        for name in ("layer_norm1", "layer_norm2"):
            state[f"{start}.{name}.weight"] = 1 + 0.2 * torch.randn(inner)
            state[f"{start}.{name}.bias"] = 0.1 * torch.randn(inner)
    sides = {
        "enc_proj": {"": (20, inner)},
        "proj_enc": {"": (inner, width)},
        "proj_enc_proj": {"0.": (inner, width), "1.": (20, inner)},
    }
    for name, (rows, columns) in sides[order].items():
        state[f"projector.{name}weight"] = torch.randn(rows, columns) / columns**0.5
        state[f"projector.{name}bias"] = 0.1 * torch.randn(rows)
    state["transformer.patch_embed.proj.weight"] = torch.zeros(3)
    torch.save(state, path)
    return path
