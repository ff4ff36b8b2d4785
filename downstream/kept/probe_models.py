"""Linear probes and nearest neighbours as kept models."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from downstream.kept.kept_covariates import pooled_inputs
from downstream.kept.kept_model import Apply, KeptModel, PatientReader, Predicted
from downstream.probes.fit import Probe
from downstream.probes.heads import Linear, Nearest
from downstream.probes.ordinal_head import Ordinal


def kept_probe(probe: Probe) -> KeptModel:
    """Return a probe in the form in which it is kept."""
    arrays, heads = {"mean": probe.mean, "spread": probe.spread}, []
    for at, head in enumerate(probe.heads):
        if isinstance(head, Linear):
            arrays |= {f"{at}.weight": head.weight, f"{at}.bias": head.bias}
            heads.append({"kind": "linear", "is_class": head.is_class})
        elif isinstance(head, Ordinal):
            arrays |= {f"{at}.weight": head.weight, f"{at}.thresholds": head.thresholds}
            heads.append({"kind": "ordinal"})
        else:
            arrays |= {f"{at}.bank": head.bank, f"{at}.target": head.target}
            heads.append(
                {"kind": "nearest", "is_class": head.is_class, "neighbours": head.neighbours}
            )
    fields: dict[str, Any] = {
        "name": probe.name,
        "task": probe.task,
        "chosen": list(probe.chosen),
        "is_flat": probe.is_flat,
        "heads": heads,
    }
    return KeptModel(kind="probe", fields=fields, arrays=arrays)


def restored_probe(model: KeptModel) -> Apply:
    """Return a kept probe, ready for patients."""
    probe = probe_of(model)

    def apply(reader: PatientReader, ids: Sequence[str]) -> Predicted:
        """Return what the probe says of patients."""
        scores = probe.scores(pooled_inputs(model, reader, ids))
        if probe.task == "binary":
            scores = np.stack([1 - scores, scores], axis=1)
        return Predicted(outcome=scores)

    return apply


def probe_of(model: KeptModel) -> Probe:
    """Return the probe of a kept model."""
    fields, arrays = model.fields, model.arrays
    heads: list[Linear | Nearest | Ordinal] = []
    for at, head in enumerate(fields["heads"]):
        if head["kind"] == "ordinal":
            thresholds = arrays[f"{at}.thresholds"]
            heads.append(Ordinal(weight=arrays[f"{at}.weight"], thresholds=thresholds))
        elif head["kind"] == "linear":
            heads.append(
                Linear(
                    weight=arrays[f"{at}.weight"],
                    bias=arrays[f"{at}.bias"],
                    is_class=head["is_class"],
                )
            )
        else:
            heads.append(
                Nearest(
                    bank=arrays[f"{at}.bank"],
                    target=arrays[f"{at}.target"],
                    neighbours=head["neighbours"],
                    is_class=head["is_class"],
                )
            )
    return Probe(
        name=fields["name"],
        task=fields["task"],
        chosen=tuple(fields["chosen"]),
        mean=arrays["mean"],
        spread=arrays["spread"],
        heads=tuple(heads),
        is_flat=fields["is_flat"],
    )
