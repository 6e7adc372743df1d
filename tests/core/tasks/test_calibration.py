"""Calibrated losses: independent of what a recalibration of the outputs would fix, and of nothing else."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from fedmtl_core.errors import ConfigError
from fedmtl_core.tasks import kinds
from fedmtl_core.tasks.calibration import classification_losses, regression_losses
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.tasks.kinds import Classification, Regression
from fedmtl_core.tasks.registry import kind_of
from fedmtl_core.tasks.spec import TaskSpec
from tests import calibrated

SIZES = [(400, 2), (400, 3), (1000, 20), (200, 77), (25, 2), (15, 3), (3, 2)]


def scored(rows, classes, seed=0, signal=1.5):
    """Logits that say something about random targets, and the targets."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, classes, rows)
    logits = random.normal(size=(rows, classes)) + 0.3 * np.arange(classes)
    logits[np.arange(rows), targets] += signal
    return logits, targets.astype(float)


def valued(rows, seed=0):
    """Values that correlate with random targets, and the targets."""
    random = np.random.default_rng(seed)
    targets = random.uniform(0, 5, rows)
    return 0.1 * targets + 0.2 * random.normal(size=rows) + 7, targets


def cross_entropies(logits, targets):
    return nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(targets).long(), reduction="none").numpy()


@pytest.mark.parametrize(("rows", "classes"), SIZES)
@pytest.mark.parametrize("signal", [0.0, 1.5, 30.0], ids=["noise", "signal", "separable"])
def test_a_classification_has_the_losses_of_the_described_fit(rows, classes, signal):
    logits, targets = scored(rows, classes, signal=signal)
    expected = calibrated.classification_losses(logits, targets)
    assert classification_losses(logits, targets) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("seed", range(3))
def test_two_classes_have_nearly_the_least_loss_that_any_temperature_and_bias_give(seed):
    """The search has neither a penalty nor a standardization."""
    logits, targets = scored(400, 2, seed)
    margins, signs = logits[:, 1] - logits[:, 0], 2 * targets - 1
    center, width = np.array([2.0, 0.0]), 2.0
    for _ in range(12):  # each grid is finer than the one before
        grid = [center + width * np.array([i, j]) / 10 for i in range(-10, 11) for j in range(-10, 11)]
        grid = [point for point in grid if point[0] >= 0]
        means = [np.logaddexp(0, -signs * (point[0] * margins + point[1])).mean() for point in grid]
        center, width = grid[int(np.argmin(means))], width / 2
    losses = classification_losses(logits, targets)
    assert losses.mean() == pytest.approx(min(means), abs=1e-4)
    assert losses == pytest.approx(np.logaddexp(0, -signs * (center[0] * margins + center[1])), abs=0.02)


@pytest.mark.parametrize("rows", [2, 3, 50, 1000])
def test_a_regression_has_the_residuals_of_least_squares(rows):
    outputs, targets = valued(rows)
    assert regression_losses(outputs, targets) == pytest.approx(
        calibrated.regression_losses(outputs, targets), rel=1e-9, abs=1e-12
    )


@pytest.mark.parametrize("factor", [1, -1])
def test_a_regressions_mean_loss_follows_from_the_correlation(factor):
    outputs, targets = valued(300)
    r = np.corrcoef(factor * outputs, targets)[0, 1]
    assert regression_losses(factor * outputs, targets).mean() == pytest.approx(1 - max(r, 0) ** 2)


@pytest.mark.parametrize(("rows", "classes"), SIZES)
@pytest.mark.parametrize("temperature", [1e-3, 0.7, 50.0])
def test_another_temperature_and_other_biases_change_no_loss(rows, classes, temperature):
    logits, targets = scored(rows, classes)
    random = np.random.default_rng(1)
    other = (logits + 3 * random.normal(size=classes)) / temperature + random.normal(size=(rows, 1))
    assert abs(cross_entropies(other, targets).mean() - cross_entropies(logits, targets).mean()) > 0.01
    assert classification_losses(other, targets) == pytest.approx(classification_losses(logits, targets), abs=1e-9)


@pytest.mark.parametrize(("slope", "offset"), [(0.01, 0.0), (1.0, 40.0), (300.0, -2.0)])
def test_another_scale_and_another_offset_change_no_loss(slope, offset):
    outputs, targets = valued(100)
    losses = regression_losses(outputs, targets)
    assert regression_losses(slope * outputs + offset, targets) == pytest.approx(losses, abs=1e-9)
    assert regression_losses(outputs, slope * targets + offset) == pytest.approx(losses, abs=1e-9)


@pytest.mark.parametrize(("rows", "classes"), [(400, 2), (1000, 20), (200, 77)])
def test_outputs_that_tell_the_classes_better_apart_have_a_lower_loss(rows, classes):
    means = [classification_losses(*scored(rows, classes, signal=signal)).mean() for signal in (0.0, 0.7, 1.5, 4.0)]
    assert sorted(means, reverse=True) == means


def test_a_class_with_fewer_than_ten_rows_keeps_the_bias_of_its_frequency():
    """Without information in the outputs, the losses are those of the frequencies with one added to each count."""
    targets = np.repeat([0.0, 1.0, 2.0], [9, 9, 9])
    losses = classification_losses(np.zeros((27, 3)), targets)
    assert losses == pytest.approx(np.full(27, np.log(3)))
    targets = np.repeat([0.0, 1.0], [3, 6])
    assert classification_losses(np.zeros((9, 2)), targets) == pytest.approx(
        np.repeat(-np.log([4 / 11, 7 / 11]), [3, 6])
    )


def test_outputs_that_say_nothing_or_the_contrary_have_the_loss_of_the_frequencies():
    logits, targets = scored(400, 3, signal=3.0)
    frequencies = np.bincount(targets.astype(int)) / 400
    entropy = -(frequencies * np.log(frequencies)).sum()
    constant = classification_losses(np.ones((400, 3)) * [1.0, 5.0, -2.0], targets)
    assert constant.mean() == pytest.approx(entropy, abs=1e-6)
    assert classification_losses(-logits, targets) == pytest.approx(constant, abs=1e-12)
    outputs, values = valued(50)
    mean = (values - values.mean()) ** 2 / values.var()
    for poor in (-outputs, np.full(50, 1e6), 1e6 + 1e-2 * np.random.default_rng(0).normal(size=50)):
        assert regression_losses(poor, values) == pytest.approx(mean)


def test_equal_rows_give_equal_bits_and_their_order_does_not_matter():
    logits, targets = scored(400, 5)
    outputs, values = valued(400)
    order = np.random.default_rng(2).permutation(400)
    for losses, given, wanted in ((classification_losses, logits, targets), (regression_losses, outputs, values)):
        first = losses(given, wanted)
        assert first.dtype == np.float64
        assert losses(given.copy(), wanted.copy()).tobytes() == first.tobytes()
        assert losses(given[order], wanted[order]) == pytest.approx(first[order], abs=1e-9)


def test_arguments_come_back_unchanged():
    logits, targets = scored(30, 2)
    before = logits.copy()
    classification_losses(logits, targets)
    regression_losses(logits[:, 0], targets)
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("rows", [1, 2, 3, 12, 400])
@pytest.mark.parametrize("classes", [2, 3, 150])
def test_any_rows_have_finite_losses_without_a_warning(rows, classes):
    random = np.random.default_rng(3)
    drawn = random.integers(0, classes, rows).astype(float)
    every = [drawn, np.zeros(rows), np.full(rows, classes - 1.0), np.arange(rows) % classes + 0.0]
    logits = random.normal(size=(rows, classes))
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        for targets in every:
            right = np.eye(classes)[targets.astype(int)]
            infinite = np.where(right == 1, 0.0, -np.inf)
            for outputs in (0 * logits, right, -right, 1e4 * right + logits, 3e38 * right, 1e-38 * logits, infinite):
                losses = classification_losses(outputs, targets)
                assert losses.shape == (rows,)
                assert np.isfinite(losses).all()
                assert (losses >= 0).all()
                # Outputs without information are among those that the fit can choose; the penalty explains the rest.
                assert losses.mean() <= classification_losses(0 * logits, targets).mean() + 1e-3
            for values in (logits[:, 0], right[:, 0], 3e38 * logits[:, 0], 1e-38 * logits[:, 0], np.full(rows, 1e300)):
                residuals = regression_losses(values, targets)
                assert (residuals is None) == (len(set(targets)) == 1)
                assert residuals is None or (np.isfinite(residuals).all() and residuals.mean() <= 1 + 1e-9)


def plain(rows):
    return np.linspace(0.5, 1.5, rows)


def test_the_built_in_types_calibrate_their_losses():
    logits, targets = scored(50, 2)
    got = kinds.calibrated_losses(kind_of(PRESETS["sst2"]), logits, targets, plain(50))
    assert np.array_equal(got, classification_losses(logits, targets))
    outputs, values = valued(50)
    got = kinds.calibrated_losses(kind_of(PRESETS["stsb"]), outputs[:, None], values, plain(50))
    assert np.array_equal(got, regression_losses(outputs, values))


def test_losses_without_a_calibration_stay_what_they_are():
    """Equal targets have no variance; a type that predicts tokens keeps one number per token."""
    stsb, texts = kind_of(PRESETS["stsb"]), kind_of(TaskSpec("texts", "masked_lm", ("text",), ""))
    assert np.array_equal(kinds.calibrated_losses(stsb, valued(9)[0][:, None], np.full(9, 3.0), plain(9)), plain(9))
    assert np.array_equal(kinds.calibrated_losses(texts, np.arange(9.0), np.arange(9.0), plain(9)), plain(9))


class Focal(Classification):
    """A type with a loss of its own."""

    def loss(self, outputs, targets, reduction="mean"):
        return super().loss(2 * outputs, targets, reduction)


class Absolute(Regression):
    def loss(self, outputs, targets, reduction="mean"):
        return nn.functional.l1_loss(outputs[:, 0], targets, reduction=reduction)


class Reducing(Classification):
    """A type whose evaluation has other outputs than its loss."""

    def reduce_outputs(self, outputs):
        return outputs.argmax(dim=1)


@pytest.mark.parametrize("custom", [Focal, Absolute, Reducing])
def test_a_type_with_a_loss_or_outputs_of_its_own_keeps_its_losses(custom):
    kind = custom(PRESETS["sst2"])
    assert np.array_equal(kind.calibrated_losses(*scored(50, 2), plain(50)), plain(50))


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        (np.zeros(3), r"got 3 finite ones in an array \(3,\)"),
        (np.full(4, np.nan), r"got 0 finite ones in an array \(4,\)"),
    ],
    ids=["too few", "not finite"],
)
def test_a_type_that_returns_no_number_per_target_is_told(returned, got):
    class Wrong(Classification):
        def calibrated_losses(self, outputs, targets, losses):
            return returned

    with pytest.raises(
        ConfigError, match=r"tasks\.sst2\.type: .*calibrated_losses\(\) must return.* 4 targets, " + got
    ):
        kinds.calibrated_losses(Wrong(PRESETS["sst2"]), *scored(4, 2), plain(4))
