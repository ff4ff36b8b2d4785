"""MIL models as kept models: the network's tensors, and what is needed to build it again."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from downstream.cohorts.covariates import CovariateEncoder
from downstream.kept.kept_covariates import encoded, encoder_of, with_covariates
from downstream.kept.kept_model import (
    Apply,
    KeptModel,
    KeptModelError,
    PatientReader,
    Predicted,
)
from downstream.mil.build import build_model
from downstream.mil.losses import BagTask
from downstream.mil.objective import Cox, Hazards, LabelObjective
from downstream.mil.predict import predict
from downstream.run.fit_settings import MilSettings
from downstream.run.spec_json import from_json, to_json
from downstream.survival.survival_losses import discrete_risk

if TYPE_CHECKING:
    from downstream.mil.model import MilModel
    from downstream.mil.objective import Objective
    from downstream.run.study_spec import CovariateFusionName


def kept_mil(
    model: "MilModel",
    name: str,
    objective: "Objective",
    settings: MilSettings,
    *,
    widths: Sequence[int],
    ratios: Sequence[int],
    encoder: CovariateEncoder | None = None,
    covariate_fusion: "CovariateFusionName" = "late",
) -> KeptModel:
    """Return a trained MIL model in the form in which it is kept.

    Args:
        model: the trained model.
        name: name of its aggregator.
        objective: objective that it was trained by.
        settings: settings that it was built with.
        widths: feature width of each teacher.
        ratios: ratios between the mpps, coarse to fine; empty for one mpp.
        encoder: encoder of the covariates that the model takes; None without any.
        covariate_fusion: how covariates meet the tiles.
    """
    meaning: dict[str, Any] = {"objective": "labels"}
    if isinstance(objective, Cox):
        meaning = {"objective": "cox"}
    elif isinstance(objective, Hazards):
        meaning = {"objective": "hazards"}
    elif isinstance(objective, LabelObjective):
        meaning |= {"centre": objective.centre, "scale": objective.scale}
    fields = {
        **meaning,
        "name": name,
        "task": asdict(objective.task),
        "settings": to_json(settings),
        "widths": list(widths),
        "ratios": list(ratios),
    }
    tensors = {key: part.detach().cpu().numpy() for key, part in model.state_dict().items()}
    if encoder is not None:
        fields["covariate_fusion"] = covariate_fusion
    return with_covariates(KeptModel(kind="mil", fields=fields, arrays=tensors), encoder)


def network_of(model: KeptModel) -> "MilModel":
    """Return the network of a kept model, on the CPU.

    Raises:
        KeptModelError: The tensors are not those of the network.
    """
    fields = model.fields
    width = sum(fields["widths"])
    encoder = encoder_of(model)
    network = build_model(
        fields["name"],
        BagTask(**fields["task"]),
        from_json(MilSettings, fields["settings"]),
        widths=tuple(fields["widths"]),
        ratios=tuple(fields["ratios"]),
        mean_D=np.zeros(width),
        std_D=np.ones(width),
        covariates=0 if encoder is None else encoder.width,
        covariate_fusion=fields.get("covariate_fusion", "late"),
    )
    try:
        network.load_state_dict({k: torch.from_numpy(a.copy()) for k, a in model.arrays.items()})
    except RuntimeError as err:
        msg = f"the kept model {fields['name']!r} does not fit this slidelake's: {err}"
        raise KeptModelError(msg) from err
    return network


def restored_mil(model: KeptModel) -> Apply:
    """Return a kept MIL model, ready for patients."""
    network, meaning = network_of(model), model.fields["objective"]

    def apply(reader: PatientReader, ids: Sequence[str]) -> Predicted:
        """Return what the model says of patients, with the attention of their tiles."""
        beside = encoded(model, reader, ids)
        logits, attention = predict(network, [reader.bag(one) for one in ids], beside)
        if meaning == "cox":
            return Predicted(outcome=logits[:, 0], attention=attention)
        if meaning == "hazards":
            risk_P = discrete_risk(torch.from_numpy(logits)).numpy()
            return Predicted(outcome=risk_P, attention=attention)
        objective = LabelObjective(
            task=BagTask(**model.fields["task"]),
            centre=model.fields["centre"],
            scale=model.fields["scale"],
        )
        return Predicted(outcome=objective.outcome(logits), attention=attention)

    return apply
