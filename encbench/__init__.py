"""encbench ranks text encoders for few-step text-to-image generation, before training.

Importing this package loads no model library; import what you need from its
submodules (``encbench.types``, ``encbench.encoders``, ``encbench.ranking``, ...).
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("encbench")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0+source"

__all__ = ["__version__"]
