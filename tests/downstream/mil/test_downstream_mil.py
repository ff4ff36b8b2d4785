"""MIL finds planted tiles, finds nothing where there is nothing, stops in time, is reproducible."""

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from downstream.mil.aggregators.tile_canvas import families, stack_levels
from downstream.mil.bag_sequence import tile_statistics
from downstream.mil.losses import BagTask, class_weights
from downstream.mil.model import MilModel
from downstream.mil.objective import LabelObjective
from downstream.mil.padded_bags import MilError
from downstream.mil.predict import predict
from downstream.mil.pseudo import PseudoTiles
from downstream.mil.train import Examples, TrainedModel, train_mil
from downstream.run.feature_bags import PatientBag
from downstream.run.fit_settings import MilSettings, SettingsError
from downstream.run.model_tables import AGGREGATORS, CLINICAL, PROBES, models_of
from tests.worlds.one_thread import one_thread

TILES, KEYS, WIDTH = 40, 4, 32

SETTINGS = MilSettings(hidden=64, epochs=15, learning_rate=5e-4)
BINARY = BagTask(kind="multiclass", outputs=2)


__all__ = ["one_thread"]  # the fixture


def bag_of(features: NDArray[Any]) -> PatientBag:
    """Tiles in a square of one slide."""
    tiles = len(features)
    place = np.stack(np.divmod(np.arange(tiles), 7), axis=1)
    return PatientBag(
        features=features.astype(np.float16),
        places=place,
        family=np.arange(tiles, dtype=np.int32),
        slide=np.zeros(tiles, dtype=np.int32),
        tile_id=np.arange(tiles),
        x=(place[:, 1] * 256).astype(np.int32),
        y=(place[:, 0] * 256).astype(np.int32),
    )


def cohort(patients: int, *, seed: int, shift: float) -> Examples:
    """Every other patient has KEYS first tiles that lie off the rest by `shift`."""
    rng = np.random.default_rng(seed)
    label = np.arange(patients) % 2
    bags = rng.standard_normal((patients, TILES, WIDTH))
    bags[label == 1, :KEYS, 0] += shift
    return Examples(bags=[bag_of(bag) for bag in bags], target=label.astype(np.float64))


def fit(
    train: Examples,
    validation: Examples | None = None,
    *,
    name: str = "abmil",
    task: BagTask = BINARY,
    settings: MilSettings = SETTINGS,
    seed: int = 0,
    weighted: bool = True,
    **more: Any,  # noqa: ANN401
) -> TrainedModel:
    objective = LabelObjective.fit(task, train.target, weighted=weighted)
    width = train.bags[0].features.shape[1]
    return train_mil(
        name, train, validation, objective, settings, widths=(width,), seed=seed, **more
    )


def score(model: MilModel, examples: Examples) -> NDArray[np.float64]:
    logits, _ = predict(model, examples.bags)
    scores: NDArray[np.float64] = model.task.scores(torch.from_numpy(logits)).numpy()[:, 1]
    return scores


@functools.cache
def planted() -> MilModel:
    return fit(cohort(40, seed=0, shift=5.0)).model


def test_a_planted_signal_is_learnt_and_attention_ranks_its_tiles() -> None:
    test = cohort(60, seed=1, shift=5.0)
    assert roc_auc_score(test.target, score(planted(), test)) > 0.9
    is_key = np.arange(TILES) < KEYS
    _, attention = predict(planted(), test.bags)
    ranked = [roc_auc_score(is_key, a) for a, y in zip(attention, test.target, strict=True) if y]
    assert np.mean(ranked) > 0.9


def test_without_a_signal_there_is_nothing_to_learn() -> None:
    areas = []
    for seed in range(3):
        model = fit(
            cohort(30, seed=seed, shift=0.0), settings=replace(SETTINGS, epochs=5), seed=seed
        ).model
        test = cohort(60, seed=100 + seed, shift=0.0)
        areas.append(roc_auc_score(test.target, score(model, test)))
    assert 0.35 < np.mean(areas) < 0.65


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(AGGREGATORS) - {"hierarchical"}))
def test_every_model_trains(name: str) -> None:
    train, test = cohort(24, seed=0, shift=8.0), cohort(24, seed=1, shift=8.0)
    settings = replace(SETTINGS, epochs=12, learning_rate=2e-3, dropout=0.0)
    fitted = fit(train, name=name, settings=settings)
    assert fitted.train_loss[-1] < fitted.train_loss[0]
    assert roc_auc_score(test.target, score(fitted.model, test)) > 0.8


def test_the_names_are_those_of_the_aggregators() -> None:
    assert set(AGGREGATORS) == models_of("mil").keys() - {*PROBES, *CLINICAL}


def levels(patients: int, seed: int) -> Examples:
    """Two levels of 3 coarse tiles with 2 x 2 under each; the signal is in one family's fines."""
    rng = np.random.default_rng(seed)
    label = np.arange(patients) % 2
    coarse = np.stack([np.zeros(3, int), np.arange(3)], axis=1)
    fine = np.concatenate([place * 2 + [[0, 0], [0, 1], [1, 0], [1, 1]] for place in coarse])
    places = stack_levels([[coarse, fine]], [2])
    bags = []
    for y in label:
        x = rng.standard_normal((15, WIDTH))
        x[3:7, 0] += 6.0 * y
        plain = bag_of(x)
        bags.append(replace(plain, places=places, family=families(places, [2])))
    return Examples(bags=bags, target=label.astype(np.float64))


def test_several_mpps_train_on_whole_families() -> None:
    train, test = levels(40, 0), levels(40, 1)
    settings = replace(SETTINGS, epochs=12, dropout=0.1, learning_rate=2e-3, max_tiles=10)
    model = fit(train, name="hierarchical", settings=settings, ratios=(2,)).model
    assert roc_auc_score(test.target, score(model, test)) > 0.8
    with pytest.raises(MilError, match="takes several"):
        fit(train, settings=settings, ratios=(2,))


def test_it_stops_where_validation_is_best() -> None:
    train, validation = cohort(16, seed=0, shift=3.0), cohort(40, seed=1, shift=3.0)
    settings = replace(SETTINGS, epochs=60, patience=5, learning_rate=3e-3, weight_decay=0.0)
    fitted = fit(train, validation, settings=settings)
    validation_losses = np.array(fitted.validation_loss)
    assert fitted.epochs == validation_losses.argmin() + 1
    assert len(validation_losses) == fitted.epochs + settings.patience
    again = replace(settings, epochs=fitted.epochs)
    assert np.array_equal(
        score(fitted.model, validation), score(fit(train, settings=again).model, validation)
    )


def test_padded_batches_learn_the_same_thing() -> None:
    rng = np.random.default_rng(3)
    base, test = cohort(40, seed=0, shift=5.0), cohort(60, seed=1, shift=5.0)
    ragged = [
        bag_of(bag.features[: rng.integers(KEYS + 1, TILES)])
        for bag in base.bags  # type: ignore[attr-defined]
    ]
    train = Examples(bags=ragged, target=base.target)
    settings = replace(SETTINGS, batch_patients=8, learning_rate=2e-3, batch_rows=200)
    assert roc_auc_score(test.target, score(fit(train, settings=settings).model, test)) > 0.9


def test_bfloat16_is_near_float32() -> None:
    train, test = cohort(20, seed=0, shift=5.0), cohort(20, seed=1, shift=5.0)
    half = score(fit(train, settings=replace(SETTINGS, precision="bfloat16")).model, test)
    whole = score(fit(train).model, test)
    assert not np.array_equal(half, whole)
    np.testing.assert_allclose(half, whole, atol=0.02)
    assert np.ptp(whole) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["concat", "shazam"])
def test_teachers_are_fused(fusion: str) -> None:
    """The second teacher is all noise, at a hundred times the scale."""
    rng = np.random.default_rng(9)
    parts = []
    for seed in (0, 1):
        made = cohort(40, seed=seed, shift=6.0)
        bags = [
            bag_of(np.concatenate([bag.features, 100 * rng.standard_normal((TILES, 8))], axis=1))
            for bag in made.bags  # type: ignore[attr-defined]
        ]
        parts.append(Examples(bags=bags, target=made.target))
    train, test = parts
    settings = replace(SETTINGS, fusion=fusion, learning_rate=2e-3, epochs=20)  # type: ignore[arg-type]
    objective = LabelObjective.fit(BINARY, train.target, weighted=True)
    model = train_mil("abmil", train, None, objective, settings, widths=(WIDTH, 8), seed=0).model
    assert type(model.aggregator).__name__ == "FusedAggregator"
    assert roc_auc_score(test.target, score(model, test)) > 0.85


def test_experts_learn() -> None:
    train, test = cohort(40, seed=0, shift=5.0), cohort(40, seed=1, shift=5.0)
    model = fit(train, settings=replace(SETTINGS, experts=True)).model
    assert roc_auc_score(test.target, score(model, test)) > 0.9


def test_pseudo_labels_teach_a_classifier_of_tiles() -> None:
    """The classifier has no tile's label, and finds the planted ones."""
    train, test = cohort(40, seed=0, shift=5.0), cohort(20, seed=1, shift=5.0)
    settings = replace(SETTINGS, pseudo_tiles=KEYS, learning_rate=5e-3)
    model = fit(train, settings=settings).model
    assert roc_auc_score(test.target, score(model, test)) > 0.9
    pseudo = model.aggregator
    assert isinstance(pseudo, PseudoTiles)
    assert not torch.equal(pseudo.weight, pseudo.classifier.weight)
    is_key = np.arange(TILES) < KEYS
    areas = []
    for bag, label in zip(test.bags, test.target, strict=True):  # type: ignore[call-overload]
        x_ND = torch.from_numpy(bag.features.astype(np.float32))
        assert model.mean is not None
        assert model.std is not None
        logits = pseudo.classifier((x_ND - model.mean) / model.std).detach().numpy()[:, 0]
        areas += [roc_auc_score(is_key, logits)] if label else []
    assert np.mean(areas) > 0.9
    with pytest.raises(MilError, match="pseudo labels with Clam"):
        fit(train, name="clam_sb", settings=settings)


def test_a_number_is_learnt_in_its_own_unit() -> None:
    rng = np.random.default_rng(0)
    bags = rng.standard_normal((60, 10, 8)).astype(np.float16)
    number = 1000.0 + 100.0 * bags[:, :, 0].astype(np.float64).mean(axis=1)
    train, test = (
        Examples(bags=[bag_of(bag) for bag in bags[part]], target=number[part])
        for part in (slice(40), slice(40, 60))
    )
    task = BagTask(kind="regression")
    objective = LabelObjective.fit(task, train.target, weighted=True)
    settings = replace(SETTINGS, epochs=30, dropout=0.0)
    model = train_mil("mean", train, None, objective, settings, widths=(8,), seed=0).model
    predicted = objective.outcome(predict(model, test.bags)[0])
    assert predicted.shape == (20,)
    assert np.corrcoef(predicted, test.target)[0, 1] > 0.8
    assert abs(predicted.mean() - 1000) < 30


def test_one_label_is_several_of_one() -> None:
    objective = LabelObjective.fit(
        BagTask(kind="multilabel"), np.array([0.0, 0.0, 0.0, 1.0]), weighted=True
    )
    assert objective.weights == (3.0,)
    loss = objective.loss(torch.zeros(2, 1), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(loss, torch.tensor([1.0, 3.0]) * np.log(2), check_dtype=False)


def test_labels_that_do_not_exclude_each_other() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, (60, 2)).astype(np.float64)
    bags = rng.standard_normal((60, 10, 8))
    bags[:, :3, :2] += 4 * target[:, None]
    train, test = (
        Examples(bags=[bag_of(bag) for bag in bags[part]], target=target[part])
        for part in (slice(40), slice(40, 60))
    )
    task = BagTask(kind="multilabel", outputs=2)
    objective = LabelObjective.fit(task, train.target, weighted=True)
    model = train_mil("abmil", train, None, objective, SETTINGS, widths=(8,), seed=0).model
    predicted = objective.outcome(predict(model, test.bags)[0])
    assert roc_auc_score(test.target, predicted) > 0.9


def test_three_classes() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(30) % 3
    bags = rng.standard_normal((30, 10, 8))
    bags[np.arange(30), :, label] += 2.0
    train = Examples(bags=[bag_of(bag) for bag in bags], target=label.astype(np.float64))
    model = fit(train, task=BagTask(kind="multiclass", outputs=3)).model
    logits, _ = predict(model, train.bags)
    assert logits.shape == (30, 3)
    assert np.mean(logits.argmax(axis=1) == label) > 0.9


def test_the_seed_decides_and_the_callers_random_state_is_left_alone() -> None:
    train = cohort(8, seed=0, shift=5.0)
    one_fit = functools.partial(fit, train, settings=replace(SETTINGS, epochs=2, max_tiles=10))
    before = torch.random.get_rng_state()
    one, same, other = (one_fit(seed=seed).model for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(score(one, train), score(same, train))
    assert not np.array_equal(score(one, train), score(other, train))


def test_the_order_of_tiles_changes_nothing() -> None:
    bag = cohort(2, seed=2, shift=5.0).bags[0]
    order = np.random.default_rng(0).permutation(TILES)
    (logits,), (attention,) = predict(planted(), [bag])
    (shuffled,), (moved,) = predict(planted(), [bag_of(bag.features[order])])
    assert shuffled == pytest.approx(logits, rel=1e-4, abs=1e-5)
    assert moved == pytest.approx(attention[order], rel=1e-4)
    assert attention.sum() == pytest.approx(1, rel=1e-5)


def test_statistics_are_those_of_all_tiles_together() -> None:
    rng = np.random.default_rng(4)
    bags = [(rng.standard_normal((n, 5)) * 3 + 100).astype(np.float16) for n in (3, 50, 8)]
    bags = [np.concatenate([bag, np.ones((len(bag), 1), np.float16)], axis=1) for bag in bags]
    mean, std = tile_statistics([bag_of(bag) for bag in bags])
    tiles = np.concatenate(bags).astype(np.float64)
    assert mean == pytest.approx(tiles.mean(axis=0))
    assert std[:5] == pytest.approx(tiles[:, :5].std(axis=0))
    assert std[5] == 1.0  # a constant feature is not divided by zero


def test_the_rarer_class_weighs_more_in_a_step() -> None:
    # With the weight inside cross_entropy a batch of one would cancel it and both runs would agree.
    made = cohort(12, seed=5, shift=0.0)
    train = Examples(bags=made.bags, target=np.array([1.0] + [0.0] * 11))
    settings = replace(SETTINGS, epochs=4, dropout=0.0)
    assert class_weights(train.target.astype(np.int64), 2).tolist() == [12 / 22, 6.0]
    rare = fit(train, settings=settings, weighted=True).model
    plain = fit(train, settings=settings, weighted=False).model
    assert score(rare, train)[1:].mean() > score(plain, train)[1:].mean() + 0.05


@pytest.mark.parametrize(
    "wrong",
    [{"fusion": "shazaam"}, {"precision": "half"}, {"epochs": 0}, {"dropout": 1.0},
     {"learning_rate": 0.0}],
)  # fmt: skip
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        MilSettings(**wrong)


def test_bags_and_labels_are_checked() -> None:
    made = cohort(4, seed=0, shift=0.0)
    with pytest.raises(MilError, match="4 bags with 3 targets"):
        Examples(bags=made.bags, target=made.target[:3])
    with pytest.raises(MilError, match=r"per class are \[2, 2, 0\]"):
        fit(made, task=BagTask(kind="multiclass", outputs=3))
    with pytest.raises(MilError, match="no training patients"):
        train_mil(
            "abmil",
            Examples(bags=[], target=np.empty(0)),
            None,
            LabelObjective(task=BINARY),
            SETTINGS,
            widths=(2,),
            seed=0,
        )
    broken = replace(made.bags[0], features=np.full((3, WIDTH), np.inf, np.float16))
    bad = Examples(bags=[broken, *list(made.bags)[1:]], target=made.target)  # type: ignore[call-overload]
    with pytest.raises(MilError, match="bag number 0"):
        fit(bad)
