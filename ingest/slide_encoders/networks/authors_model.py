"""Slide encoders whose licence keeps their code: the user's own copy of it is run, by its folder.

`--code DIR` is the folder of the model as its authors publish it: configuration, Python files and
safetensors. Its code is run as it is, by the package `transformers`, and nothing is downloaded.

Shape letters: N tiles, D width of a tile's features, E width of a slide's vector.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor

from ingest.errors import SlideEncoderError
from ingest.slide_encoders.slide_card import SlideCard
from ingest.slide_encoders.slide_network import NetworkInputs, SlideNetwork


class Prism(SlideNetwork):
    """PRISM by its authors' model.

    Args:
        model: the authors' model.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - the authors' own class
        super().__init__()
        self.model = model

    def forward(self, x_ND: Tensor, places_N2: Tensor) -> Tensor:
        """Return the image embedding [E]."""
        del places_N2
        embedding: Tensor = self.model.slide_representations(x_ND[None])["image_embedding"]
        return embedding[0]


class Care(SlideNetwork):
    """CARE by its authors' model.

    Args:
        model: the authors' model.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - the authors' own class
        super().__init__()
        self.model = model

    def forward(self, x_ND: Tensor, places_N2: Tensor) -> Tensor:
        """Return the slide's embedding [E] of tiles at cells (column, row)."""
        tiles = torch.tensor([len(x_ND)], device=x_ND.device)
        embedding: Tensor = self.model(x_ND[None], tiles, places_N2[None]).wsi_embedding
        return embedding[0]


def build_prism(card: SlideCard, inputs: NetworkInputs) -> SlideNetwork:
    """Return PRISM of the user's copy; its text decoder is left out."""
    model = _model(card, inputs)
    model.text_decoder = None
    return Prism(model)


def build_care(card: SlideCard, inputs: NetworkInputs) -> SlideNetwork:
    """Return CARE of the user's copy."""
    return Care(_model(card, inputs))


def _model(card: SlideCard, inputs: NetworkInputs) -> Any:  # noqa: ANN401 - the authors' own class
    """Return the authors' model in float32.

    Raises:
        SlideEncoderError: no folder was given, transformers is missing, or the model can't be read.
    """
    if inputs.code is None:
        msg = (
            f"{card.name} runs its authors' code, which slidelake may not ship (licence "
            f"{card.licence}): give the folder of your copy of {card.hub} by --code DIR"
        )
        raise SlideEncoderError(msg)
    if importlib.util.find_spec("transformers") is None:
        msg = f"{card.name} needs the package transformers: pip install transformers"
        raise SlideEncoderError(msg)
    transformers: Any = importlib.import_module("transformers")
    try:
        return transformers.AutoModel.from_pretrained(
            str(inputs.code),
            trust_remote_code=True,
            local_files_only=True,
            use_safetensors=True,
            torch_dtype=torch.float32,
        )
    except Exception as error:
        msg = (
            f"{inputs.code} can't be loaded as {card.name}: {type(error).__name__}: {error}; it "
            "must hold the model as the hub has it, with safetensors"
        )
        raise SlideEncoderError(msg) from error
