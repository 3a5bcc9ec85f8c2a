"""Spec strings of datasets and prompt sets; light, since configurations hold them."""

from __future__ import annotations

from typing import ClassVar

from ..specs import Spec


class DatasetSpec(Spec):
    """A parsed ``family[:source][?option=value&...]``; see :class:`~encbench.specs.Spec`."""

    HINT: ClassVar[str] = "write family:source?option=value&..., such as coco:FOLDER"
