"""Self-distillation from pixels as a term: DINO over crops, iBOT on hidden patches, KoLeo.

The moving average of the student embeds a whole view; the student embeds another whole view with
hidden patches, and local crops.

Shape letters: B samples, N tokens, D embedding, K prototypes, C channels, H W pixels.
"""

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.over_workers import loss_over_workers
from distill.losses.self_losses import Centre, dino_loss, ibot_loss, koleo_loss, random_mask
from distill.recipes.recipe import Term
from distill.recipes.student_settings import TileStudent
from distill.students.prototypes import PrototypeHead
from distill.terms.term import Losses, TermContext, TermInputs, TermLoss
from distill.train.ema import Ema
from distill.train.views import cropped, draw, normalised, sized

if TYPE_CHECKING:
    from distill.students.student import StudentOutputs

AREA = (0.05, 0.32)


class SelfDistillation(TermLoss):
    """Computes DINO, iBOT and KoLeo as in DINOv2 and GPFM, on a tile with cached targets.

    Changed: the global views are the whole tile, differently turned and stained, since targets are
    of the whole tile; patches are hidden in the pixels (grey), which any network can see; one
    centre for each of embeddings and tokens instead of Sinkhorn. A token of the moving average is
    compared with the student's at the same place of the same view.

    Settings: `dino`, `ibot`, `koleo`, weights; `crops`, local crops; `crop_share`, their side as a
    share of the student's, rounded to whole tokens; `prototypes`; `momentum` of the average; the
    two temperatures.
    """

    allowed = MappingProxyType(
        {
            "dino": 1.0,
            "ibot": 1.0,
            "koleo": 0.1,
            "crops": 2,
            "crop_share": 0.5,
            "prototypes": 1024,
            "momentum": 0.992,
            "teacher_temperature": 0.05,
            "temperature": 0.1,
        }
    )

    @classmethod
    def crop_share(cls, term: Term) -> float | None:
        """Return the side of the local crops, as a share of a tile's; None without crops."""
        settings = {**cls.allowed, **term.settings}
        return settings["crop_share"] if settings["crops"] >= 1 else None

    def __init__(self, context: TermContext) -> None:
        super().__init__(context)
        settings = context.recipe.student_as(TileStudent)
        self._views, self._input_px = context.recipe.views, settings.input_px
        # In a list: its parameters are the task's, not the term's.
        self._student = [context.student]
        count = int(self.settings["prototypes"])
        self.cls_head = PrototypeHead(context.student.dim, count)
        self.token_head = PrototypeHead(context.student.token_dim, count)
        followed = nn.ModuleList([context.student, self.cls_head, self.token_head])
        self.average = Ema(followed, lambda _: self.settings["momentum"])
        self.cls_centre, self.token_centre = Centre(count), Centre(count)
        self._logits: tuple[Tensor, Tensor] | None = None

    def forward(self, inputs: TermInputs) -> Losses:
        """Return three weighted losses [B]: DINO, iBOT and KoLeo."""
        if inputs.batch.pixels is None:
            msg = "self-distillation needs pixels"
            raise TypeError(msg)
        x_BCHW = sized(inputs.batch.pixels, self._input_px)
        first, second = (draw(x_BCHW, self._views, inputs.generator).pixels for _ in range(2))
        cls_a_BK, tokens_a_BNK = self._teacher_logits(first)
        cls_b_BK, _ = self._teacher_logits(second)
        hidden, mask_BN = self._hide_patches(first, inputs.generator)
        masked: StudentOutputs = self._student[0](hidden)
        local = [self._student[0](view) for view in self._local_crops(x_BCHW, inputs.generator)]
        logits_BK = self.cls_head(masked.embedding)
        losses = [self._dino(logits_BK, cls_b_BK)]
        for outputs in local:
            small_BK = self.cls_head(outputs.embedding)
            losses += [self._dino(small_BK, cls_a_BK), self._dino(small_BK, cls_b_BK)]
        ibot_B = ibot_loss(
            self.token_head(masked.tokens.flatten(1, 2)),
            self.token_centre.probabilities(tokens_a_BNK, temperature=self._teacher_temperature),
            mask_BN.to(hidden.device),
            temperature=self.settings["temperature"],
        )
        self._logits = (torch.cat([cls_a_BK, cls_b_BK]), tokens_a_BNK.flatten(0, 1))
        return {
            "dino": self.settings["dino"] * torch.stack(losses).mean(dim=0),
            "ibot": self.settings["ibot"] * ibot_B,
            "koleo": self.settings["koleo"] * loss_over_workers(koleo_loss, masked.embedding),
        }

    @property
    def _teacher_temperature(self) -> float:
        return self.settings["teacher_temperature"]

    def _dino(self, student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
        target = self.cls_centre.probabilities(teacher_BK, temperature=self._teacher_temperature)
        return dino_loss(student_BK, target, temperature=self.settings["temperature"])

    @torch.no_grad()
    def _teacher_logits(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the moving average's logits of embeddings [B, K] and of tokens [B, N, K]."""
        student, cls_head, token_head = self._average_parts()
        outputs: StudentOutputs = student(x_BCHW)
        return cls_head(outputs.embedding), token_head(outputs.tokens.flatten(1, 2))

    def _average_parts(self) -> Any:  # noqa: ANN401 - three modules
        return self.average.module

    def _hide_patches(self, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Set the squares under random tokens to 0 (grey); return pixels and mask [B, N]."""
        height, width = self._student[0].grid
        mask_BN = random_mask(len(x_BCHW), height * width, generator)
        grid_B1HW = mask_BN.view(-1, 1, height, width).float().to(x_BCHW.device)
        visible = 1 - F.interpolate(grid_B1HW, x_BCHW.shape[2:], mode="nearest")
        return (x_BCHW * visible).contiguous(memory_format=torch.channels_last), mask_BN

    def _local_crops(self, x_BCHW: Tensor, generator: torch.Generator) -> list[Tensor]:
        side_px = self._student[0].crop_px or self._input_px
        return [
            normalised(cropped(x_BCHW, side_px, AREA, generator))
            for _ in range(int(self.settings["crops"]))
        ]

    def after_step(self, step: int, student: nn.Module) -> None:
        """Update the moving average and the centres."""
        followed = nn.ModuleList([student, self.cls_head, self.token_head])
        self.average.update(followed, step)
        if self._logits is not None:
            cls_BK, tokens_BK = self._logits
            self.cls_centre.update(cls_BK)
            self.token_centre.update(tokens_BK)
            self._logits = None
