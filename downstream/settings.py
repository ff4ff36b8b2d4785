"""What a fit may be told.

Plain dataclasses, apart from the code that uses them: the front door names them without importing
torch or scikit-survival (3-5 s each from a cold disk).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AbmilSettings:
    """Attention MIL: the model and its fixed training schedule.

    The number of epochs is fixed in advance. There is no early stopping, because with cohorts this
    small the only patients left to stop on would be the test patients.

    Attributes:
        hidden: Width of a tile's embedding after the first layer.
        attention: Width of the gated attention.
        dropout: Probability with which an embedding's unit is dropped in training.
        learning_rate: AdamW step size.
        weight_decay: AdamW decoupled weight decay.
        epochs: Passes over the training patients, one patient per step.
        max_tiles: Most tiles of one patient in one training step; a larger bag gives a fresh random
            subset each step.
    """

    hidden: int = 256
    attention: int = 128
    dropout: float = 0.25
    learning_rate: float = 2e-4
    weight_decay: float = 1e-5
    epochs: int = 20
    max_tiles: int = 4096


@dataclass(frozen=True, kw_only=True)
class CoxSettings:
    """Cox regression on pooled features.

    Attributes:
        components: Principal components kept, fewer where the training fold has fewer patients.
        alpha: Ridge penalty per unit of total feature variance (so that wide and narrow teachers
            are shrunk alike).
    """

    components: int = 16
    alpha: float = 0.1
