"""Static pages that open without a server and without a network."""

from __future__ import annotations

import base64
import hashlib
from typing import Any


def hash_script(script: str) -> str:
    """The name of a script in a content security policy: its sha256 in base64."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def render_page(source: str, **values: Any) -> str:
    """Render a Jinja template with escaped values. Its page runs one ``<script>``, which its policy
    allows by ``script_hash``."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    script = source.split("<script>")[1].split("</script>")[0]
    environment = Environment(
        loader=PackageLoader("encbench", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.from_string(source).render(script_hash=hash_script(script), **values)
