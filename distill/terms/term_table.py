"""The terms of a tile student's loss, by name; help and docs of terms are written from this table.

A term is imported on use, so that reading the table does not import torch.
"""

import difflib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill.errors import DistillError

if TYPE_CHECKING:
    from distill.terms.term import TermContext, TermLoss


@dataclass(frozen=True, kw_only=True)
class TermEntry:
    """One term's entry in the table.

    Attributes:
        loader: `module:class` of its `TermLoss`.
        summary: sentence for help and docs about the effect of the term.
        source: paper or method of the term.
        of_column: whether the term names a raw column of the lake, as `KIND:COLUMN`.
    """

    loader: str
    summary: str
    source: str
    of_column: bool = False


TERMS: dict[str, TermEntry] = {
    "contrast": TermEntry(
        loader="distill.terms.match_terms:ContrastLoss",
        summary="each tile's prediction against all targets of the batch, both ways",
        source="OMNI",
    ),
    "decoupled": TermEntry(
        loader="distill.terms.other_terms:DecoupledLoss",
        summary="a classifier learns a column of logits, the teacher's class apart from the others",
        source="DKD",
        of_column=True,
    ),
    "kl": TermEntry(
        loader="distill.terms.other_terms:KlLoss",
        summary="a classifier learns a column of logits at a temperature",
        source="Hinton",
        of_column=True,
    ),
    "log-sum": TermEntry(
        loader="distill.terms.match_terms:LogSumLoss",
        summary="log of the sum of fourth powers of differences",
        source="G2L; Miles and Mikolajczyk",
    ),
    "match": TermEntry(
        loader="distill.terms.match_terms:MatchLoss",
        summary=(
            "0.9 (1 - cos) + 0.1 smooth L1 of embeddings and of tokens; teachers weighted by "
            "`--weighting`"
        ),
        source="AM-RADIO, Theia",
    ),
    "multi-level": TermEntry(
        loader="distill.terms.other_terms:MultiLevelLoss",
        summary="a classifier learns a column of logits per tile, over the batch and over classes",
        source="MLKD",
        of_column=True,
    ),
    "privileged": TermEntry(
        loader="distill.terms.other_terms:PrivilegedLoss",
        summary=(
            "VICReg of two views and a column that only training has (a stain, genes, nuclei)"
        ),
        source="TriDeNT",
        of_column=True,
    ),
    "prototypes": TermEntry(
        loader="distill.terms.match_terms:PrototypeLoss",
        summary=("cross-entropy of assignments to fixed directions, of embedding and patch tokens"),
        source="H0-mini",
    ),
    "relation": TermEntry(
        loader="distill.terms.other_terms:RelationLoss",
        summary="similarities between the tiles of a batch",
        source="similarity-preserving KD",
    ),
    "self": TermEntry(
        loader="distill.terms.self_term:SelfDistillation",
        summary=(
            "DINO over whole views and local crops, iBOT on hidden patches, KoLeo, against a "
            "moving average"
        ),
        source="DINOv2, GPFM",
    ),
    "token-relation": TermEntry(
        loader="distill.terms.other_terms:TokenRelationLoss",
        summary="similarities between the tokens of a tile",
        source="HVisKD",
    ),
}


def term_class(kind: str) -> type["TermLoss"]:
    """Return the class of a term.

    Raises:
        DistillError: no term has this name.
    """
    if kind not in TERMS:
        close = difflib.get_close_matches(kind, TERMS, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        msg = f"no term '{kind}': {hint}known are {', '.join(TERMS)}"
        raise DistillError(msg)
    module, _, name = TERMS[kind].loader.partition(":")
    loss: type[TermLoss] = getattr(importlib.import_module(module), name)
    return loss


def make_term(context: "TermContext") -> "TermLoss":
    """Build a term of a tile student."""
    return term_class(context.term.kind)(context)


def terms_help() -> str:
    """Return the help of `--term`, with the names of all terms."""
    return (
        "A further term KIND[:TEACHER][=WEIGHT], as contrast=0.1 or kl:COLUMN; kinds are "
        f"{', '.join(TERMS)}. Repeatable."
    )


def terms_markdown() -> str:
    """Return the table of terms as `docs/distillation.md` has it."""
    rows = [
        f"| `{name}{':COLUMN' if entry.of_column else ''}` | {entry.summary} | {entry.source} |"
        for name, entry in TERMS.items()
    ]
    return "\n".join(["| term | what it does | source |", "|---|---|---|", *rows])
