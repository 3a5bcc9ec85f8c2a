"""A prompt set of two prompts."""

from encbench.data.datasets import PromptFamily
from encbench.types import Prompt, PromptSet

PROMPTS = (Prompt("a", "one two three"), Prompt("b", "four five"))

FAMILY = PromptFamily(
    name="lines",
    summary="Two lines.",
    examples=("lines",),
    load=lambda spec: PromptSet("lines", "1" * 64, PROMPTS),
)
