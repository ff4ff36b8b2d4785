"""Small convolutional networks on CPUs by ONNX Runtime: about twice as fast as torch.

The network is exported once per machine and kept in the user's cache, under a name that is a hash
of all that it was made from. Before it is kept, it must return what torch returns.

Letters in names: B tiles in a batch, C channels, H W pixels, D embedding.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ingest.errors import TeacherError
from ingest.teachers.cards.card import Card
from ingest.teachers.weights.weights_files import has_onnx

CHECKED = 2
NEAR = 1e-4  # of the spread of embeddings; measured: 2e-5

FloatArray = npt.NDArray[np.float32]


class OnnxNetwork:
    """An exported network, each call of which runs on the caller's thread alone.

    Args:
        path: path of the exported file.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, x_BCHW: Tensor) -> FloatArray:
        """Return the embeddings [B, D] of normalised pixels."""
        embedding: FloatArray = self._session.run(None, {"x": x_BCHW.contiguous().numpy()})[0]
        return embedding


class _Own(nn.Module):
    """A network from pixels to its own embedding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.model.forward_head(self.model.forward_features(x))  # type: ignore[operator]
        return embedding


def onnx_network(model: nn.Module, card: Card, weights_sha256: str) -> OnnxNetwork:
    """Return a network for ONNX Runtime, from the cache or exported now.

    Args:
        model: network with its weights, on a CPU.
        card: card of the network, which states how it is run.
        weights_sha256: SHA-256 of the teacher's weights.

    Raises:
        TeacherError: the packages are missing, or the exported network returns other numbers.
    """
    if not has_onnx():
        msg = f"'{card.name}' was begun with ONNX Runtime: pip install 'slidelake[onnx]'"
        raise TeacherError(msg)
    made_from = [card.identity(), weights_sha256, torch.__version__, version("onnxscript")]
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:24]
    path = _cache() / f"{key}.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            export_onnx(model, card, made)
            made.replace(path)
    return OnnxNetwork(path)


def export_onnx(model: nn.Module, card: Card, path: Path) -> None:
    """Write a network as ONNX: "x", normalised float32 [B, 3, H, W], to "y", its embedding [B, D].

    Args:
        model: network with its weights, on a CPU; `forward_features` and `forward_head` are timm's.
        card: card of the network, which states how it is run.
        path: path of the exported file.

    Raises:
        TeacherError: the exported network returns other numbers; the file is kept all the same.
    """
    _export(_Own(model).eval(), card, path)
    _check(_Own(model).eval(), OnnxNetwork(path), card)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "slidelake" / "onnx"


def _export(network: nn.Module, card: Card, path: Path) -> None:
    example = torch.zeros(CHECKED, 3, card.input_px, card.input_px)
    batch = torch.export.Dim("batch", min=1, max=4096)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    # It prints its steps on stdout, which is where a command's JSON goes.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            str(path),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=["x"],
            output_names=["y"],
            external_data=False,
            verbose=False,
        )
    quiet.setLevel(level)


def _check(network: nn.Module, exported: OnnxNetwork, card: Card) -> None:
    x_BCHW = torch.randn(CHECKED + 1, 3, card.input_px, card.input_px)
    with torch.inference_mode():
        expected = network(x_BCHW).numpy()
    apart = np.abs(exported(x_BCHW) - expected).max() / expected.std()
    if not apart < NEAR:
        msg = f"'{card.name}' gives other numbers in ONNX Runtime (by {apart:.1e} of their spread)"
        raise TeacherError(msg)
