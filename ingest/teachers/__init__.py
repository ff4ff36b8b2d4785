"""Teachers: from a name to columns of features.

A name is imported when it is first used, so that a card can be read without torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ingest.teachers.cards.card import Engine, Precision
    from ingest.teachers.column_maker import MadeColumn
    from ingest.teachers.encoder import Encoder, cropped, preprocess, resized
    from ingest.teachers.feature_maps import channels_last_map
    from ingest.teachers.find_teacher import weights_of
    from ingest.teachers.network_code import timm_code
    from ingest.teachers.networks import build
    from ingest.teachers.onnx_engine import export_onnx
    from ingest.teachers.outputs import Output, card_name, in_share, outputs_of
    from ingest.teachers.ray_extract import ExtractResult, extract
    from ingest.teachers.student_files import WEIGHTS, student_file
    from ingest.teachers.views.field_of_view import FovMode
    from ingest.teachers.weights.position_tables import resampled
    from ingest.teachers.weights.weight_keys import load_weights, read_weights
    from ingest.teachers.weights.weights_files import find_weights

MODULES = {
    "WEIGHTS": "ingest.teachers.student_files",
    "Encoder": "ingest.teachers.encoder",
    "Engine": "ingest.teachers.cards.card",
    "ExtractResult": "ingest.teachers.ray_extract",
    "FovMode": "ingest.teachers.views.field_of_view",
    "MadeColumn": "ingest.teachers.column_maker",
    "Output": "ingest.teachers.outputs",
    "Precision": "ingest.teachers.cards.card",
    "build": "ingest.teachers.networks",
    "card_name": "ingest.teachers.outputs",
    "channels_last_map": "ingest.teachers.feature_maps",
    "cropped": "ingest.teachers.encoder",
    "export_onnx": "ingest.teachers.onnx_engine",
    "extract": "ingest.teachers.ray_extract",
    "find_weights": "ingest.teachers.weights.weights_files",
    "in_share": "ingest.teachers.outputs",
    "load_weights": "ingest.teachers.weights.weight_keys",
    "outputs_of": "ingest.teachers.outputs",
    "preprocess": "ingest.teachers.encoder",
    "read_weights": "ingest.teachers.weights.weight_keys",
    "resampled": "ingest.teachers.weights.position_tables",
    "resized": "ingest.teachers.encoder",
    "student_file": "ingest.teachers.student_files",
    "timm_code": "ingest.teachers.network_code",
    "weights_of": "ingest.teachers.find_teacher",
}
"""The module of every name on the door."""

__all__ = [
    "WEIGHTS",
    "Encoder",
    "Engine",
    "ExtractResult",
    "FovMode",
    "MadeColumn",
    "Output",
    "Precision",
    "build",
    "card_name",
    "channels_last_map",
    "cropped",
    "export_onnx",
    "extract",
    "find_weights",
    "in_share",
    "load_weights",
    "outputs_of",
    "preprocess",
    "read_weights",
    "resampled",
    "resized",
    "student_file",
    "timm_code",
    "weights_of",
]


def __getattr__(name: str) -> object:
    """Import a name of the door when it is first used."""
    if name not in MODULES:
        msg = f"module 'ingest.teachers' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(MODULES[name]), name)
