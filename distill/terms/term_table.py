"""Terms by name."""

import difflib

from distill.errors import DistillError
from distill.terms.match_terms import ContrastLoss, LogSumLoss, MatchLoss, PrototypeLoss
from distill.terms.other_terms import (
    DecoupledLoss,
    KlLoss,
    MultiLevelLoss,
    PrivilegedLoss,
    RelationLoss,
    TokenRelationLoss,
)
from distill.terms.self_term import SelfDistillation
from distill.terms.term import About, TermLoss

TERMS: dict[str, type[TermLoss]] = {
    "contrast": ContrastLoss,
    "decoupled": DecoupledLoss,
    "kl": KlLoss,
    "log-sum": LogSumLoss,
    "match": MatchLoss,
    "multi-level": MultiLevelLoss,
    "privileged": PrivilegedLoss,
    "prototypes": PrototypeLoss,
    "relation": RelationLoss,
    "self": SelfDistillation,
    "token-relation": TokenRelationLoss,
}


def term_class(kind: str) -> type[TermLoss]:
    """The class of a term.

    Raises:
        DistillError: there is none of this name.
    """
    if kind not in TERMS:
        close = difflib.get_close_matches(kind, TERMS, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        msg = f"no term '{kind}': {hint}known are {', '.join(TERMS)}"
        raise DistillError(msg)
    return TERMS[kind]


def make_term(about: About) -> TermLoss:
    """A term of a tile student."""
    return term_class(about.term.kind)(about)
