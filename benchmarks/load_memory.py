"""Peak memory while BLIP3o-NEXT's layout is loaded, over the language model's own weights.

A checkpoint is written in the published layout (language model, connector, diffusion transformer,
its autoencoder, vision tower; sharded bf16 safetensors), then loaded by the ``blip3o`` adapter in
a process of its own, which has loaded a tiny one before, so that imports count for nothing.

Peak is the kernel's high-water mark of resident memory (VmHWM, set back before loading) less what
was resident before, until every page of the weights has been read. That counts pages of mapped
files, too, so weights that were mapped and copied would count twice. 'anonymous' is the peak of
copies alone, sampled: nearly none in bfloat16, where the weights are the file's own pages.

    python benchmarks/load_memory.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

MEGABYTE = 1_000_000
DTYPES = ("bfloat16", "float32")


def checkpoint(folder: Path, width: int, layers: int, beside: int) -> int:
    """Write one; returns the bytes of the language model's weights in bf16.

    Args:
        beside: numbers in each of the diffusion transformer and the vision tower.
    """
    import torch
    import transformers
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    words = ["a photo of a brown dog and a red bicycle in front of a white house"]
    tokenizer = transformers.Qwen2Tokenizer().train_new_from_iterator(
        words, vocab_size=300, show_progress=False
    )
    tags = ["<|im_start|>", "<|im_end|>", "<im_start>", "<im_end>", "<S0>", "<S1>", "<S2>"]
    tokenizer.add_tokens([*tags, *(f"<I{i}>" for i in range(16))])
    tokenizer.chat_template = (
        "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content"
        " + '<|im_end|>\\n' }}{%- endfor %}{{ '<|im_start|>assistant\\n' }}"
    )
    tokenizer.save_pretrained(folder)
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer) + 20_000,  # large, as the published one
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 128),
        head_dim=64,
        tie_word_embeddings=True,
    )
    number = {name: tokenizer.convert_tokens_to_ids(name) for name in [*tags, "<I0>", "<I15>"]}
    settings = {
        **config.to_dict(),
        "model_type": "blip3o_qwen_inference",
        "architectures": ["blip3oQwenForInferenceLM"],
        "dtype": "bfloat16",
        "image_start_token_id": number["<I0>"],
        "image_end_token_id": number["<I15>"],
        "scale_start_token_id": number["<S0>"],
        "scale_end_token_id": number["<S2>"],
        "image_start_tag_id": number["<im_start>"],
        "image_end_tag_id": number["<im_end>"],
    }
    (folder / "config.json").write_text(json.dumps(settings))
    with torch.device("meta"):
        model = transformers.Qwen3Model(config)
    shapes = {f"model.{name}": value.shape for name, value in model.state_dict().items()}
    size = 2 * sum(shape.numel() for shape in shapes.values())
    side = 1024
    for module in ("sana.transformer_blocks", "vision_tower.vision_tower.layers"):
        for i in range(max(1, beside // side**2)):
            shapes[f"model.{module}.{i}.weight"] = torch.Size((side, side))
    shapes["model.sana_vae.encoder.conv_in.weight"] = torch.Size((128, 3, 3, 3))
    shapes["model.diffusion_connector.0.weight"] = torch.Size((64, width))
    parts: list[dict[str, Any]] = [{}]
    for name, shape in shapes.items():
        if sum(2 * s.numel() for s in parts[-1].values()) > 200 * MEGABYTE:
            parts.append({})
        parts[-1][name] = shape
    index = {}
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors"
        tensors = {n: (torch.randn(s) / 50).bfloat16() for n, s in part.items()}
        save_file(tensors, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    body = {"metadata": {"total_size": 0}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(body))
    return size


def status(*names: str) -> int:
    """Bytes of this process, as Linux counts them: the sum of some lines of its status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return sum(1024 * int(found[name].split()[0]) for name in names)


def child(tiny: str, folder: str, dtype: str) -> None:
    """Load both; print what the second one needed."""
    import gc

    from encbench.encoders import load_encoder

    load_encoder(f"blip3o:{tiny}?mode=text&dtype={dtype}", "cpu").encode(["a"])
    gc.collect()
    before, anonymous, stop = status("VmRSS"), status("RssAnon"), threading.Event()
    peak = [anonymous]

    def watch() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back
    encoder = load_encoder(f"blip3o:{folder}?mode=text&dtype={dtype}", "cpu")
    for weight in encoder.model.parameters():  # one number of each page: none is left on disk
        weight.flatten()[:: 4096 // weight.element_size()].sum()
    resident = status("VmHWM") - before
    stop.set()
    watcher.join()
    held = sum(p.numel() * p.element_size() for p in encoder.model.parameters())
    print(json.dumps({"weights": held, "peak": resident, "anonymous": peak[0] - anonymous}))


def measure(
    width: int, layers: int, beside: int, dtypes: tuple[str, ...] = DTYPES
) -> dict[str, Any]:
    """Ratios by dtype."""
    with tempfile.TemporaryDirectory() as home:
        root = Path(home)
        checkpoint(root / "tiny", 64, 1, 1)
        size = checkpoint(root / "model", width, layers, beside)
        files = sum(f.stat().st_size for f in (root / "model").glob("*.safetensors"))
        result: dict[str, Any] = {"language_model_bytes": size, "checkpoint_bytes": files}
        for dtype in dtypes:
            command = [sys.executable, __file__, "--child", root / "tiny", root / "model", dtype]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            found = json.loads(done.stdout.splitlines()[-1])
            ratios = {f"{k}_ratio": found[k] / found["weights"] for k in ("peak", "anonymous")}
            result[dtype] = {**found, **ratios}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--beside", type=int, default=80_000_000)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    from provenance import keep

    keep("load_memory", measure(options.width, options.layers, options.beside))


if __name__ == "__main__":
    main()
