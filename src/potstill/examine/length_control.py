"""How often a model would win if its answers were as long as the other's."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from potstill.examine.resample import CELLS_AT_ONCE, percentile_interval, wilson
from potstill.types import Estimate

# Shape letters of this file: R resamples, N pairs, U units of resampling.

NUM_RESAMPLES = 1_000
INVERSE_PENALTY = 10.0
"""Of the length's weight: weak, and it keeps the fit finite where the longer answer always wins."""

SMALLEST_SIDE = 0.05
"""Share of pairs that must have the longer answer of either model: what happens at equal lengths
is else a guess from one side."""

FEWEST_PAIRS = 20
MOST_STEPS = 100
LONGEST_STEP = 1.0
TOLERANCE = 1e-5
TINY = 1e-9
SIGNATURE = (
    "logistic regression of the win on tanh(length difference / its standard deviation), L2 "
    f"penalty 1/{INVERSE_PENALTY:g} on its weight; the probability of a win at difference 0"
)


def length_controlled(
    scores: np.ndarray, num_characters: np.ndarray, units: np.ndarray, *, seed: int
) -> Estimate:
    """The win rate with the effect of length taken out, in [0, 1].

    Fits logit P(a wins) = theta + phi * tanh(d / s), with d the characters of a's answer minus
    those of b's and s the standard deviation of d, and gives the probability at d = 0. A tie is
    half a win and half a loss. AlpacaEval's own model has a third term, how hard the
    request is, which takes the answers of many models; between two it is part of theta.

    Args:
        scores: [n] a's share of the win, in [0, 1].
        num_characters: [n] of a's answer minus those of b's.
        units: [n] numbers from 0: answers of one unit are drawn together.

    Source:
        Dubois et al. (2024), "Length-controlled AlpacaEval: a simple way to debias automatic
        evaluators". arXiv:2404.04475.
    """
    about = {"n": len(scores), "signature": SIGNATURE}
    spread = float(np.std(num_characters))
    problem = _why_not(num_characters, spread)
    if problem:
        return Estimate(value=None, method="none", note=problem, **about)
    x = np.tanh(num_characters / spread)
    num_units = int(units.max()) + 1
    if np.ptp(scores) == 0:  # resamples of equal scores are all equal; Wilson's interval is not
        share = float(scores[0])
        low, high = wilson(share * num_units, num_units)
        return Estimate(value=share, low=low, high=high, method="wilson", **about)
    value = float(_at_equal_length(x, scores, np.ones((1, len(scores))))[0])
    low, high = percentile_interval(_resampled(x, scores, units, num_units, seed))
    how = f"{NUM_RESAMPLES:,} resamples, seed {seed}" + (", groups" * (num_units < len(scores)))
    return Estimate(value=value, low=low, high=high, method=f"bootstrap-percentile, {how}", **about)


def _why_not(num_characters: np.ndarray, spread: float) -> str:
    if len(num_characters) < FEWEST_PAIRS:
        return f"{len(num_characters)} pairs are too few to tell length from quality"
    if spread == 0:
        return "all answers of a pair are equally long: there is nothing to control for"
    longer = float(np.mean(num_characters > 0))
    shorter = float(np.mean(num_characters < 0))
    if min(longer, shorter) < SMALLEST_SIDE:
        which, share = ("longer", longer) if longer > shorter else ("shorter", shorter)
        return (
            f"the first model's answer is the {which} one in {share:.0%} of the pairs, so what "
            f"would happen at equal lengths cannot be told"
        )
    return ""


def _resampled(
    x: np.ndarray, scores: np.ndarray, units: np.ndarray, num_units: int, seed: int
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    chances = np.full(num_units, 1 / num_units)
    step = max(1, CELLS_AT_ONCE // len(x))
    found = []
    for start in range(0, NUM_RESAMPLES, step):
        size = min(step, NUM_RESAMPLES - start)
        drawn_RU = rng.multinomial(num_units, chances, size=size)
        found.append(_at_equal_length(x, scores, drawn_RU[:, units].astype(np.float64)))
    return np.concatenate(found)


def _at_equal_length(x: np.ndarray, scores: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """The fitted probability of a win at x = 0, for each row of weights: [R, n] to [R].

    All fits are made at once, by Newton's method: one fit is small, and a bootstrap has many.
    """
    theta, phi = np.zeros(len(weights_RN)), np.zeros(len(weights_RN))
    for _ in range(MOST_STEPS):
        p_RN = expit(theta[:, None] + phi[:, None] * x)
        missed_RN = weights_RN * (scores - p_RN)
        slope_theta = missed_RN.sum(axis=1)
        slope_phi = missed_RN @ x - phi / INVERSE_PENALTY
        curve_RN = weights_RN * p_RN * (1 - p_RN)
        a = curve_RN.sum(axis=1) + TINY
        b, c = curve_RN @ x, curve_RN @ x**2 + 1 / INVERSE_PENALTY
        step = np.stack([c * slope_theta - b * slope_phi, a * slope_phi - b * slope_theta])
        step /= a * c - b**2
        # Far from the end a whole step overshoots.
        step *= np.minimum(1.0, LONGEST_STEP / np.maximum(np.abs(step).max(axis=0), TINY))
        theta, phi = theta + step[0], phi + step[1]
        if np.abs(step).max() < TOLERANCE:
            break
    return expit(theta)
