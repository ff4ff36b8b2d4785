"""Self-distillation of a region encoder: DINO, iBOT, KoLeo and consistency on feature grids.

Shape letters: B regions, M mid tokens, N fine tokens, C crops, S tokens of a crop, D width,
K prototypes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses.feature_losses import cosine_loss
from distill.losses.numeric import weighted_mean
from distill.losses.over_workers import loss_over_workers
from distill.losses.self_losses import Centre, dino_loss, ibot_loss, koleo_loss, random_mask
from distill.recipes.recipe import Recipe, Term
from distill.recipes.student_settings import RegionStudent
from distill.students.prototypes import PrototypeHead
from distill.students.region_network import (
    Region,
    RegionNetwork,
    RegionOutputs,
    Tokens,
    crop_cells,
    crop_side,
)
from distill.terms.feature_terms import check_term
from distill.train.ema import Ema

SETTINGS: dict[str, dict[str, float]] = {
    "dino": {
        "crops": 8,
        "fine_share": 6 / 16,
        "mid_share": 3 / 4,
        "momentum": 0.992,
        "temperature": 0.1,
        "teacher_temperature": 0.05,
    },
    "ibot": {"probability": 0.5, "least": 0.1, "most": 0.5},
    "koleo": {},
    "expert": {"cosine": 1.0},
    "hierarchy": {},
}


@dataclass(frozen=True, kw_only=True)
class RegionTerms:
    """The terms of a recipe of regions.

    Attributes:
        by_kind: the terms by kind, at most one of each.
    """

    by_kind: Mapping[str, Term]

    def has(self, kind: str) -> bool:
        """Return whether the recipe has a term of this kind."""
        return kind in self.by_kind

    def weight(self, kind: str) -> float:
        """Return the weight of a term."""
        return self.by_kind[kind].weight

    def setting(self, kind: str, name: str) -> float:
        """Return a setting of a term, or the default."""
        return self.by_kind[kind].settings.get(name, SETTINGS[kind][name])


def region_terms(recipe: Recipe) -> RegionTerms:
    """Return the checked terms of a recipe.

    Raises:
        DistillError: a kind, a setting or a teacher is not known, or "dino" is not among them.
    """
    terms = {term.kind: term for term in recipe.terms}
    if set(terms) - set(SETTINGS) or len(terms) < len(recipe.terms) or "dino" not in terms:
        msg = (
            f"terms {[term.kind for term in recipe.terms]} given; a region encoder has each of "
            f"{', '.join(SETTINGS)} once at most, and 'dino', without which it could give all "
            "regions one vector"
        )
        raise DistillError(msg)
    for term in recipe.terms:
        check_term(recipe, term, SETTINGS[term.kind])
    return RegionTerms(by_kind=terms)


@dataclass(frozen=True, kw_only=True)
class AverageOutputs:
    """Outputs of the moving average for a region, without gradient.

    Attributes:
        whole: outputs of the average's network.
        fine: logits of the fine stream's class token [B, K].
        mid: logits of the coarse stream's class token [B, K].
        tokens: logits of fine [B, N, K] and mid tokens [B, M, K], if the recipe has "ibot".
    """

    whole: RegionOutputs
    fine: Tensor
    mid: Tensor
    tokens: tuple[Tensor, ...] = ()


class RegionSelf(nn.Module):
    """The terms "dino", "ibot", "koleo" and "hierarchy", with heads, centres and moving average.

    Args:
        settings: width and prototypes.
        terms: terms of the recipe.
        network: network that the moving average follows.
    """

    def __init__(self, settings: RegionStudent, terms: RegionTerms, network: RegionNetwork) -> None:
        super().__init__()
        self.terms = terms
        self.cls_head = PrototypeHead(settings.width, settings.prototypes)
        ibot = terms.has("ibot")
        self.token_head = PrototypeHead(settings.width, settings.prototypes) if ibot else None
        # Centres of the class tokens of the fine and the coarse stream, and of their tokens.
        self.centres = nn.ModuleList(Centre(settings.prototypes) for _ in range(4 if ibot else 2))
        momentum = terms.setting("dino", "momentum")
        self.average = Ema(self._followed(network), lambda _: momentum)
        self._average_outputs: tuple[AverageOutputs, Region] | None = None

    def _followed(self, network: RegionNetwork) -> nn.ModuleList:
        """Return the modules that the moving average follows."""
        heads = [self.cls_head] if self.token_head is None else [self.cls_head, self.token_head]
        return nn.ModuleList([network, *heads])

    def forward(
        self, network: RegionNetwork, region: Region, generator: torch.Generator
    ) -> tuple[RegionOutputs, dict[str, Tensor]]:
        """Run the network with hidden tokens; return its outputs and the weighted losses [B]."""
        hidden = self._hidden_masks(region, generator)
        outputs: RegionOutputs = network(region, hidden)
        average = self._average_of(region)
        self._average_outputs = (average, region)
        crops = self._crop_losses(network, region, average, generator)
        terms = {"dino": {**crops, "dino-across": self._across_streams(outputs, average, region)}}
        if self.terms.has("ibot"):
            terms["ibot"] = {"ibot": self._ibot(outputs, average, hidden)}
        if self.terms.has("koleo"):
            terms["koleo"] = {"koleo": _koleo(outputs, region)}
        if self.terms.has("hierarchy"):
            terms["hierarchy"] = {"hierarchy": _consistency(outputs, average.whole, region)}
        return outputs, {
            name: self.terms.weight(kind) * loss_B
            for kind, losses in terms.items()
            for name, loss_B in losses.items()
        }

    def _hidden_masks(self, region: Region, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw the masks of the fine and the mid tokens to hide; background is never hidden."""
        masks = []
        for present in (region.fine_there.flatten(1), region.mid_there.flatten(1)):
            mask = torch.zeros_like(present)
            if self.terms.has("ibot"):
                least, most = (self.terms.setting("ibot", n) for n in ("least", "most"))
                drawn = random_mask(
                    len(present),
                    present.shape[1],
                    generator,
                    probability=self.terms.setting("ibot", "probability"),
                    share=(least, most),
                )
                mask = drawn.to(present.device) & present
            masks.append(mask)
        return masks[0], masks[1]

    @torch.no_grad()
    def _average_of(self, region: Region) -> AverageOutputs:
        network, cls_head, *token_head = self._average_parts()
        whole: RegionOutputs = network(region)
        grids = (whole.fine.tokens, whole.mid.tokens)
        return AverageOutputs(
            whole=whole,
            fine=cls_head(whole.fine.cls),
            mid=cls_head(whole.mid.cls),
            tokens=tuple(head(tokens) for head in token_head for tokens in grids),
        )

    def _average_parts(self) -> Any:  # noqa: ANN401 - two or three modules
        return self.average.module

    def _target(self, centre: int, logits: Tensor) -> Tensor:
        temperature = self.terms.setting("dino", "teacher_temperature")
        probabilities: Tensor = self.centres[centre].probabilities(logits, temperature=temperature)  # type: ignore[operator]
        return probabilities

    def _dino(self, cls: Tensor, target: Tensor) -> Tensor:
        temperature = self.terms.setting("dino", "temperature")
        return dino_loss(self.cls_head(cls), target, temperature=temperature)

    def _crop_losses(
        self,
        network: RegionNetwork,
        region: Region,
        average: AverageOutputs,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return the losses [B] of each stream's crops against the whole, without empty crops."""
        crops = int(self.terms.setting("dino", "crops"))
        fine, mid, _ = network.tokens(region)
        parts: list[tuple[str, Tokens, Any, Tensor]] = [
            ("fine", fine, network.fine_stream, self._target(0, average.fine)),
            ("mid", mid, network.mid_stream, self._target(1, average.mid)),
        ]
        losses = {}
        for name, tokens, stream, target_BK in parts:
            side = math.isqrt(tokens.mask.shape[1])
            part = crop_side(side, self.terms.setting("dino", f"{name}_share"))
            at_BCS = crop_cells(len(tokens.mask), crops, side, part, generator)
            crop_tokens = tokens.at(at_BCS.to(tokens.mask.device))
            cls_BCD = stream(crop_tokens).cls.view(len(at_BCS), crops, -1)
            mask_BC = crop_tokens.mask.any(dim=1).view(len(at_BCS), crops)
            loss_BC = self._dino(cls_BCD, target_BK[:, None])
            losses[f"dino-{name}"] = weighted_mean(loss_BC, mask_BC)
        return losses

    def _across_streams(
        self, outputs: RegionOutputs, average: AverageOutputs, region: Region
    ) -> Tensor:
        """Return the loss of streams and region vector against the average's other stream [B]."""
        fine_BK, mid_BK = self._target(0, average.fine), self._target(1, average.mid)
        losses = [
            self._dino(outputs.fine.cls, mid_BK),
            self._dino(outputs.mid.cls, fine_BK),
            self._dino(outputs.joined.region, fine_BK),
            self._dino(outputs.joined.region, mid_BK),
        ]
        any_fine_B = region.fine_there.flatten(1).any(dim=1)
        counts = [any_fine_B, any_fine_B, any_fine_B, torch.ones_like(any_fine_B)]
        return weighted_mean(torch.stack(losses, dim=1), torch.stack(counts, dim=1))

    def _ibot(
        self, outputs: RegionOutputs, average: AverageOutputs, hidden: Sequence[Tensor]
    ) -> Tensor:
        temperature, losses = self.terms.setting("dino", "temperature"), []
        for place, tokens in enumerate((outputs.fine.tokens, outputs.mid.tokens)):
            logits: Tensor = self.token_head(tokens)  # type: ignore[misc]
            target = self._target(2 + place, average.tokens[place])
            losses.append(ibot_loss(logits, target, hidden[place], temperature=temperature))
        return torch.stack(losses).mean(dim=0)

    def after_step(self, network: RegionNetwork, step: int) -> None:
        """Update the moving average, and the centres by its last outputs."""
        self.average.update(self._followed(network), step)
        if self._average_outputs is None:
            return
        average, region = self._average_outputs
        present = (region.fine_there.flatten(1), region.mid_there.flatten(1))
        logits = [average.fine, average.mid]
        logits += [tokens[mask] for tokens, mask in zip(average.tokens, present, strict=False)]
        for centre, centre_logits in zip(self.centres, logits, strict=False):
            centre.update(centre_logits)  # type: ignore[operator]
        self._average_outputs = None


def _consistency(outputs: RegionOutputs, average: RegionOutputs, region: Region) -> Tensor:
    """Return 1 - cos of hierarchical attention's outputs, mean over mid tokens and region [B]."""
    mid_BM = cosine_loss(outputs.joined.mid, average.joined.mid)
    own_B = cosine_loss(outputs.joined.region, average.joined.region)
    present_BM = region.mid_there.flatten(1)
    counts = torch.cat([torch.ones_like(present_BM[:, :1]), present_BM], dim=1)
    return weighted_mean(torch.cat([own_B[:, None], mid_BM], dim=1), counts)


def _koleo(outputs: RegionOutputs, region: Region) -> Tensor:
    """Return KoLeo of class tokens, mean over streams [B]; without fine tiles its part is 0."""
    any_fine_B = region.fine_there.flatten(1).any(dim=1)
    own_fine_B, own_mid_B = (
        loss_over_workers(koleo_loss, stream.cls) for stream in (outputs.fine, outputs.mid)
    )
    return (torch.where(any_fine_B, own_fine_B, 0) + own_mid_B) / 2
