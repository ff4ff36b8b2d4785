"""How a region encoder teaches itself: DINO, iBOT, KoLeo and consistency on grids of features.

Letters in names: B regions, M mid tokens, N fine tokens, C crops, S tokens of a crop, D width,
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
from distill.losses.self_losses import Centre, dino_loss, ibot_loss, koleo_loss, random_mask
from distill.recipes.recipe import Recipe, RegionStudent, Term
from distill.students.prototypes import PrototypeHead
from distill.students.region_network import (
    Region,
    RegionNetwork,
    Tokens,
    Whole,
    crop_side,
    windows,
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
        by_kind: each kind once at most.
    """

    by_kind: Mapping[str, Term]

    def has(self, kind: str) -> bool:
        """Whether it is among them."""
        return kind in self.by_kind

    def weight(self, kind: str) -> float:
        """Of a term."""
        return self.by_kind[kind].weight

    def setting(self, kind: str, name: str) -> float:
        """A number of a term."""
        return self.by_kind[kind].settings.get(name, SETTINGS[kind][name])


def region_terms(recipe: Recipe) -> RegionTerms:
    """The terms of a recipe.

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
class Taught:
    """What the moving average makes of a region, without gradient.

    Attributes:
        whole: what it sees.
        fine: logits of the fine stream's class token [B, K].
        mid: logits of the coarse stream's class token [B, K].
        tokens: logits of fine [B, N, K] and mid tokens [B, M, K], if these are asked.
    """

    whole: Whole
    fine: Tensor
    mid: Tensor
    tokens: tuple[Tensor, ...] = ()


class RegionSelf(nn.Module):
    """The terms "dino", "ibot", "koleo" and "hierarchy", with heads, centres and moving average.

    Args:
        about: width and prototypes.
        terms: of the recipe.
        network: that is followed.
    """

    def __init__(self, about: RegionStudent, terms: RegionTerms, network: RegionNetwork) -> None:
        super().__init__()
        self.terms = terms
        self.cls_head = PrototypeHead(about.width, about.prototypes)
        ibot = terms.has("ibot")
        self.token_head = PrototypeHead(about.width, about.prototypes) if ibot else None
        # Of class tokens of the fine and the coarse stream, and of their tokens.
        self.centres = nn.ModuleList(Centre(about.prototypes) for _ in range(4 if ibot else 2))
        momentum = terms.setting("dino", "momentum")
        self.average = Ema(self._followed(network), lambda _: momentum)
        self._taught: tuple[Taught, Region] | None = None

    def _followed(self, network: RegionNetwork) -> nn.ModuleList:
        """What the moving average follows."""
        heads = [self.cls_head] if self.token_head is None else [self.cls_head, self.token_head]
        return nn.ModuleList([network, *heads])

    def forward(
        self, network: RegionNetwork, region: Region, generator: torch.Generator
    ) -> tuple[Whole, dict[str, Tensor]]:
        """What the network sees with some tokens hidden, and the weighted losses [B]."""
        hidden = self._hidden(region, generator)
        seen: Whole = network(region, hidden)
        taught = self._teach(region)
        self._taught = (taught, region)
        crops = self._crops(network, region, taught, generator)
        found = {"dino": {**crops, "dino-across": self._across(seen, taught, region)}}
        if self.terms.has("ibot"):
            found["ibot"] = {"ibot": self._ibot(seen, taught, hidden)}
        if self.terms.has("koleo"):
            found["koleo"] = {"koleo": _koleo(seen, region)}
        if self.terms.has("hierarchy"):
            found["hierarchy"] = {"hierarchy": _consistency(seen, taught.whole, region)}
        return seen, {
            name: self.terms.weight(kind) * loss_B
            for kind, losses in found.items()
            for name, loss_B in losses.items()
        }

    def _hidden(self, region: Region, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Which fine and mid tokens the student does not see; only such as are there."""
        masks = []
        for there in (region.fine_there.flatten(1), region.mid_there.flatten(1)):
            mask = torch.zeros_like(there)
            if self.terms.has("ibot"):
                least, most = (self.terms.setting("ibot", n) for n in ("least", "most"))
                drawn = random_mask(
                    len(there),
                    there.shape[1],
                    generator,
                    probability=self.terms.setting("ibot", "probability"),
                    share=(least, most),
                )
                mask = drawn.to(there.device) & there
            masks.append(mask)
        return masks[0], masks[1]

    @torch.no_grad()
    def _teach(self, region: Region) -> Taught:
        network, cls_head, *token_head = self._average_parts()
        whole: Whole = network(region)
        grids = (whole.fine.tokens, whole.mid.tokens)
        return Taught(
            whole=whole,
            fine=cls_head(whole.fine.cls),
            mid=cls_head(whole.mid.cls),
            tokens=tuple(head(tokens) for head in token_head for tokens in grids),
        )

    def _average_parts(self) -> Any:  # noqa: ANN401 - two or three modules
        return self.average.module

    def _target(self, centre: int, logits: Tensor) -> Tensor:
        sharp = self.terms.setting("dino", "teacher_temperature")
        found: Tensor = self.centres[centre].probabilities(logits, temperature=sharp)  # type: ignore[operator]
        return found

    def _dino(self, cls: Tensor, target: Tensor) -> Tensor:
        heat = self.terms.setting("dino", "temperature")
        return dino_loss(self.cls_head(cls), target, temperature=heat)

    def _crops(
        self, network: RegionNetwork, region: Region, taught: Taught, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Crops of each stream against the whole of it; a crop without tiles does not count."""
        crops = int(self.terms.setting("dino", "crops"))
        fine, mid, _ = network.tokens(region)
        parts: list[tuple[str, Tokens, Any, Tensor]] = [
            ("fine", fine, network.fine_stream, self._target(0, taught.fine)),
            ("mid", mid, network.mid_stream, self._target(1, taught.mid)),
        ]
        losses = {}
        for name, tokens, stream, target_BK in parts:
            side = math.isqrt(tokens.there.shape[1])
            part = crop_side(side, self.terms.setting("dino", f"{name}_share"))
            at_BCS = windows(len(tokens.there), crops, side, part, generator)
            some = tokens.at(at_BCS.to(tokens.there.device))
            cls_BCD = stream(some).cls.view(len(at_BCS), crops, -1)
            there_BC = some.there.any(dim=1).view(len(at_BCS), crops)
            loss_BC = self._dino(cls_BCD, target_BK[:, None])
            losses[f"dino-{name}"] = weighted_mean(loss_BC, there_BC)
        return losses

    def _across(self, seen: Whole, taught: Taught, region: Region) -> Tensor:
        """Each stream, and the region's vector, against the other stream of the average."""
        fine_BK, mid_BK = self._target(0, taught.fine), self._target(1, taught.mid)
        losses = [
            self._dino(seen.fine.cls, mid_BK),
            self._dino(seen.mid.cls, fine_BK),
            self._dino(seen.joined.region, fine_BK),
            self._dino(seen.joined.region, mid_BK),
        ]
        any_fine_B = region.fine_there.flatten(1).any(dim=1)
        counts = [any_fine_B, any_fine_B, any_fine_B, torch.ones_like(any_fine_B)]
        return weighted_mean(torch.stack(losses, dim=1), torch.stack(counts, dim=1))

    def _ibot(self, seen: Whole, taught: Taught, hidden: Sequence[Tensor]) -> Tensor:
        heat, losses = self.terms.setting("dino", "temperature"), []
        for place, tokens in enumerate((seen.fine.tokens, seen.mid.tokens)):
            logits: Tensor = self.token_head(tokens)  # type: ignore[misc]
            target = self._target(2 + place, taught.tokens[place])
            losses.append(ibot_loss(logits, target, hidden[place], temperature=heat))
        return torch.stack(losses).mean(dim=0)

    def after_step(self, network: RegionNetwork, step: int) -> None:
        """Move the average, and the centres by what it last gave."""
        self.average.update(self._followed(network), step)
        if self._taught is None:
            return
        taught, region = self._taught
        there = (region.fine_there.flatten(1), region.mid_there.flatten(1))
        logits = [taught.fine, taught.mid]
        # All workers meet in a centre, so each brings something also where no tile is there.
        logits += [t[m] if m.any() else t for t, m in zip(taught.tokens, there, strict=False)]
        for centre, values in zip(self.centres, logits, strict=False):
            centre.update(values)  # type: ignore[operator]
        self._taught = None


def _consistency(seen: Whole, taught: Whole, region: Region) -> Tensor:
    """1 - cos of what hierarchical attention gives, mean over mid tokens and the region [B]."""
    mid_BM = cosine_loss(seen.joined.mid, taught.joined.mid)
    own_B = cosine_loss(seen.joined.region, taught.joined.region)
    there_BM = region.mid_there.flatten(1)
    counts = torch.cat([torch.ones_like(there_BM[:, :1]), there_BM], dim=1)
    return weighted_mean(torch.cat([own_B[:, None], mid_BM], dim=1), counts)


def _koleo(seen: Whole, region: Region) -> Tensor:
    """Of class tokens, mean over the streams; a region without fine tiles counts half."""
    any_fine_B = region.fine_there.flatten(1).any(dim=1)
    fine_B = torch.where(any_fine_B, koleo_loss(seen.fine.cls), 0)
    return (fine_B + koleo_loss(seen.mid.cls)) / 2
