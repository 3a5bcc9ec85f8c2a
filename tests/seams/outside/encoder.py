"""An encoder: each letter a token, its vector a fixed random one."""

import torch

from encbench.data.hub import ResolvedModel
from encbench.encoders import EncoderFamily
from encbench.types import EncoderCard, TextFeatures


class Letters:
    def __init__(self, spec, resolved):
        width = int(spec.source)
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(128, width, generator=generator)
        self.card = EncoderCard(
            str(spec), spec.family, spec.source, resolved.revision, width, max_tokens=None,
            license=resolved.license, parameters=self.table.numel(),
        )  # fmt: skip

    def encode(self, prompts):
        rows = [[ord(letter) % 128 for letter in prompt] or [0] for prompt in prompts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[k < len(row) for k in range(longest)] for row in rows])
        return TextFeatures(self.table[ids], mask, torch.zeros(len(rows), dtype=torch.bool))


FAMILY = EncoderFamily(
    name="letters",
    summary="A fixed vector for each letter.",
    examples=("letters:16",),
    resolve=lambda spec: ResolvedModel(None, "letters-1", "MIT"),
    load=lambda spec, resolved, device: Letters(spec, resolved),
)
