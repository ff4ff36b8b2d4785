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
        of_column: whether the term names a column of the lake, as `KIND:COLUMN`.
        labels: what the term's name has for labels: "", "[/LABELS]" or "/LABELS".
    """

    loader: str
    summary: str
    source: str
    of_column: bool = False
    labels: str = ""


TERMS: dict[str, TermEntry] = {
    "average": TermEntry(
        loader="distill.terms.average_term:AverageLoss",
        summary="the embedding against that of a moving average of the student on another view",
        source="MESA, C-RADIOv4",
    ),
    "contrast": TermEntry(
        loader="distill.terms.match_terms:ContrastLoss",
        summary="each tile's prediction against all targets of the batch, both ways",
        source="OMNI",
    ),
    "decoupled": TermEntry(
        loader="distill.terms.logit_terms:DecoupledLoss",
        summary="a classifier learns a column of logits, the true class apart from the others",
        source="DKD",
        of_column=True,
        labels="[/LABELS]",
    ),
    "decoupled-levels": TermEntry(
        loader="distill.terms.logit_terms:DecoupledLevelsLoss",
        summary="as multi-level, the true class apart from the others at each level",
        source="MDKD+",
        of_column=True,
        labels="[/LABELS]",
    ),
    "hint": TermEntry(
        loader="distill.terms.hint_term:HintLoss",
        summary="a level inside the student learns a column of a teacher's layer (`TEACHER@L6`)",
        source="FitNets",
        of_column=True,
    ),
    "kl": TermEntry(
        loader="distill.terms.logit_terms:KlLoss",
        summary=(
            "a classifier learns a column of logits at a temperature; with `difficulty` the label "
            "mixed in where a tile is hard"
        ),
        source="Hinton; Self-Evolution KD",
        of_column=True,
        labels="[/LABELS]",
    ),
    "label": TermEntry(
        loader="distill.terms.logit_terms:LabelLoss",
        summary="a classifier learns labels of an annotation of tiles, slides or patients",
        source="cross-entropy",
        labels="/LABELS",
    ),
    "log-sum": TermEntry(
        loader="distill.terms.match_terms:LogSumLoss",
        summary="log of the sum of fourth powers of differences",
        source="G2L; Miles and Mikolajczyk",
    ),
    "match": TermEntry(
        loader="distill.terms.match_terms:MatchLoss",
        summary=(
            "0.9 (1 - cos) + 0.1 smooth L1 of embeddings and of tokens, or angle^2 / dispersion in "
            "place of 1 - cos; teachers weighted by `--weighting`"
        ),
        source="AM-RADIO, Theia, C-RADIOv4",
    ),
    "multi-level": TermEntry(
        loader="distill.terms.logit_terms:MultiLevelLoss",
        summary="a classifier learns a column of logits per tile, over the batch and over classes",
        source="MLKD",
        of_column=True,
        labels="[/LABELS]",
    ),
    "mutual": TermEntry(
        loader="distill.terms.mutual_term:MutualLoss",
        summary=(
            "a second student (`student.peer`) learns beside the first, each from the other; it is "
            "kept as NAME-peer"
        ),
        source="deep mutual learning",
        labels="[/LABELS]",
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
        "A further term KIND[:TEACHER][/LABELS][=WEIGHT], as contrast=0.1, kl:COLUMN or "
        f"label/clinical.grade (a column of an annotation); kinds are {', '.join(TERMS)}. "
        "Repeatable."
    )


def terms_markdown() -> str:
    """Return the table of terms as `docs/distillation.md` has it."""
    rows = [
        f"| `{name}{':COLUMN' if entry.of_column else ''}{entry.labels}` | {entry.summary} | "
        f"{entry.source} |"
        for name, entry in TERMS.items()
    ]
    return "\n".join(["| term | what it does | source |", "|---|---|---|", *rows])
