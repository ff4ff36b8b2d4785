"""Python code that builds a card's network with timm alone, for use without slidelake."""

from collections.abc import Mapping
from typing import Any

import timm
import timm.layers
from torch import nn

from ingest.errors import TeacherError
from ingest.teachers.networks import OWN, size_argument


def timm_code(architecture: str, input_px: int, arguments: Mapping[str, Any]) -> str:
    """Return a call of `timm.create_model` that builds the network as `networks.build` does.

    The code needs `timm`, and `timm.layers` or `torch` where an argument is a layer.

    Args:
        architecture: timm's name of the network.
        input_px: side of its square inputs.
        arguments: arguments of its constructor, as in a card.

    Raises:
        TeacherError: timm has no such network.

    >>> timm_code("test_vit", 128, {"norm_layer": "LayerNorm"})
    'timm.create_model("test_vit", num_classes=0, img_size=128, norm_layer=timm.layers.LayerNorm)'
    """
    if architecture in OWN or not timm.is_model(architecture):
        msg = f"timm has no network '{architecture}'"
        raise TeacherError(msg)
    sizes = {"num_classes": 0, **size_argument(architecture, input_px)}
    texts = {name: repr(number) for name, number in sizes.items()}
    texts |= {name: _code(name, argument) for name, argument in arguments.items()}
    keywords = ", ".join(f"{name}={text}" for name, text in texts.items())
    return f'timm.create_model("{architecture}", {keywords})'


def _code(name: str, argument: object) -> str:
    if not (name.endswith("_layer") and isinstance(argument, str)):
        return repr(argument)
    module = "timm.layers" if hasattr(timm.layers, argument) else nn.__name__
    return f"{module.removesuffix('.modules')}.{argument}"
