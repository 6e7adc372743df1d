"""Losses of single examples after a recalibration of the outputs: what a rescaling would fix no longer counts.

Averaging encoders changes the scale and the offset of what a head computes. A squared error or a cross-entropy then
moves, in either direction, although the outputs order the examples as well as before. Each model's outputs are
therefore first fitted to the targets of the examples that are evaluated, by a map that keeps their order. All maps of
one kind have the same number of parameters, so none of two compared models has an advantage by them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedmtl_core.tasks.evaluation import LEAST_VARIANCE, MAX_LOSS

Array = npt.NDArray[np.float64]

RIDGE = 1e-4
"""Factor of half the squared parameters in the objective of a classification's fit. It keeps them finite if the classes
are separable."""
LEAST_ROWS = 10
"""A class with fewer examples gets no fitted bias."""

_MAX_STEPS = 100
_MAX_HALVINGS = 40
_SUFFICIENT_DECREASE = 1e-4
"""The share of the linear decrease that a step must have (Armijo)."""
_CONVERGED = 1e-10
"""The squared Newton decrement from which one more step reaches the minimum up to rounding."""


def regression_losses(outputs: Array, targets: Array) -> Array | None:
    """Return squared residuals of the targets after a least-squares fit, divided by the variance of the targets.

    The fit is affine in the outputs, with a slope of at least 0. The mean of the losses is 1 - r² for a Pearson
    correlation r above 0, and 1 otherwise.

    Args:
        outputs: predicted values, `(examples,)`; finite.
        targets: values, `(examples,)`; finite.

    Returns:
        The losses, `(examples,)`; None if all targets are the same.
    """
    wanted, predicted = (_standardized(values - values.mean(), values) for values in (targets, outputs))
    if not wanted.any():
        return None
    residuals: Array = wanted - max(0.0, float(np.mean(predicted * wanted))) * predicted
    return residuals**2


def classification_losses(outputs: Array, targets: Array) -> Array:
    """Return cross-entropies after a fit of an inverse temperature of at least 0 and a bias for each class.

    Bias-corrected temperature scaling (Alexandari, Kundaje, Shrikumar 2020, arXiv:1901.06852); for two classes it is
    Platt scaling. The outputs are centered by example and by class, and divided by their standard deviation, so that
    another temperature and other biases of the model give the same losses. The fit minimizes the mean cross-entropy
    plus `RIDGE` / 2 times the squared parameters. Biases start at the logarithms of the classes' frequencies, with one
    added to each count. A class with fewer than `LEAST_ROWS` examples keeps that bias.

    Args:
        outputs: logits, `(examples, classes)`, without NaN. Infinities count as the largest float32 numbers.
        targets: class numbers, `(examples,)`.

    Returns:
        The losses, `(examples,)`.
    """
    classes = targets.astype(np.int64)
    logits = np.clip(outputs, -MAX_LOSS, MAX_LOSS)
    logits -= logits.mean(axis=1, keepdims=True)
    counts = np.bincount(classes, minlength=logits.shape[1])
    fit = _Fit(_standardized(logits - logits.mean(axis=0), logits), classes, counts)
    parameters = fit.minimum()
    if parameters[0] < 0.0:  # the objective is convex: at an inverse temperature of 0 it is least
        fit = _Fit(np.zeros_like(logits), classes, counts)
        parameters = fit.minimum()
    losses: Array = -fit.log_likelihoods(parameters)[np.arange(len(classes)), classes]
    return losses


def _standardized(centered: Array, values: Array) -> Array:
    """Return centered values with a mean square of 1; zeros if they are no more than the rounding of the values."""
    largest = np.abs(values).max()
    if not largest:
        return np.zeros_like(centered)
    scaled = centered / largest  # squares neither overflow nor vanish
    square = float(np.mean(scaled**2))
    if square <= LEAST_VARIANCE * float(np.mean((values / largest) ** 2)):
        return np.zeros_like(centered)
    standardized: Array = scaled / np.sqrt(square)
    return standardized


class _Fit:
    """The fit of a classification: its parameters are the inverse temperature, then the changes of the biases.

    Args:
        scores: standardized outputs, `(examples, classes)`.
        classes: class numbers, `(examples,)`.
        counts: the number of examples of each class, `(classes,)`.
    """

    def __init__(self, scores: Array, classes: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]):
        self._scores = scores
        self._classes = classes
        self._rows = np.arange(len(classes))
        self._biases = np.log((counts + 1) / (len(classes) + len(counts)))
        self._fitted = np.flatnonzero(counts >= LEAST_ROWS)
        self._frequencies = counts[self._fitted] / len(classes)

    def log_likelihoods(self, parameters: Array) -> Array:
        """Return the logarithms of the classes' probabilities, `(examples, classes)`."""
        biases = self._biases.copy()
        biases[self._fitted] += parameters[1:]
        logits: Array = parameters[0] * self._scores + biases
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return logits

    def minimum(self) -> Array:
        """Return the parameters that minimize the objective, by Newton's method with backtracking."""
        parameters = np.zeros(1 + len(self._fitted))
        value, likelihoods = self._objective(parameters)
        for _ in range(_MAX_STEPS):
            gradient, hessian = self._derivatives(parameters, likelihoods)
            step = -np.linalg.solve(hessian, gradient)
            decrement = float(-gradient @ step)
            if decrement <= _CONVERGED:
                return parameters + step
            for halvings in range(_MAX_HALVINGS):
                length = 0.5**halvings
                new_value, likelihoods = self._objective(parameters + length * step)
                if new_value <= value - _SUFFICIENT_DECREASE * length * decrement:
                    break
            parameters, value = parameters + length * step, new_value
        return parameters

    def _objective(self, parameters: Array) -> tuple[float, Array]:
        """Return the objective's value, and the log-likelihoods that it was computed from."""
        likelihoods = self.log_likelihoods(parameters)
        value = -likelihoods[self._rows, self._classes].mean() + RIDGE / 2 * (parameters @ parameters)
        return float(value), likelihoods

    def _derivatives(self, parameters: Array, likelihoods: Array) -> tuple[Array, Array]:
        """Return the objective's gradient, `(parameters,)`, and its Hessian, `(parameters, parameters)`."""
        probabilities, count = np.exp(likelihoods), len(self._rows)
        products = probabilities * self._scores
        expected = products.sum(axis=1)
        deviations = products - probabilities * expected[:, None]
        chosen = probabilities[:, self._fitted]

        gradient = RIDGE * parameters
        gradient[0] += np.mean(expected - self._scores[self._rows, self._classes])
        gradient[1:] += chosen.mean(axis=0) - self._frequencies
        hessian = np.diag(np.append(np.sum(deviations * self._scores), chosen.sum(axis=0)))
        hessian[0, 1:] = hessian[1:, 0] = deviations[:, self._fitted].sum(axis=0)
        hessian[1:, 1:] -= chosen.T @ chosen
        return gradient, hessian / count + RIDGE * np.eye(len(parameters))
