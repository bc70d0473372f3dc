"""Linear instruments: a Kalman analysis of what stands on the grid is that of the numbers themselves."""

import numpy as np
import pytest
import torch
from small import climatology, small_analysis

from assim_lib.analyses import AnalysisInput
from assim_lib.instruments import LinearInstruments

SITES, MEMBERS = 12, 40
RANDOM = np.random.RandomState(0)


def neighbours(distance):
    return np.abs((np.arange(SITES)[:, None] - np.arange(SITES) + SITES // 2) % SITES - SITES // 2) == distance


def rows(*weights):
    """A number a row, of the weights of sites by name."""
    matrix = np.zeros((len(weights), 1, SITES))
    for row, chosen in zip(matrix, weights, strict=True):
        for site, weight in chosen.items():
            row[0, site] = weight
    return matrix


CASES = {
    "correlated": (np.eye(SITES)[:, None], 2 * np.exp(-np.abs(np.subtract.outer(range(SITES), range(SITES))) / 2)),
    "correlated at some sites": (rows({1: 1}, {2: 1}, {7: 1}), [[1, 0.6, 0], [0.6, 1, 0], [0, 0, 4]]),
    "several at one site": (rows({3: 1}, {3: 1}, {5: 1}), [1.0, 0.25, 2.0]),
    "between sites": (rows({0: 0.3, 1: 0.7}, {4: 0.5, 5: 0.5}, {11: 0.9, 0: 0.1}), [1.0, 0.5, 0.1]),
    "more numbers than sites": (RANDOM.standard_normal((3 * SITES, 1, SITES)), RANDOM.uniform(0.5, 2, 3 * SITES)),
    "two between the same sites": (rows({0: 0.4, 1: 0.6}, {0: 0.3, 1: 0.7}), [[1.0, 0.5], [0.5, 2.0]]),
}


OTHER_UNITS = {
    "one a site": (rows({1: 1}, {4: 1}, {7: 1}), [[1.0, 3e-6, 0], [3e-6, 1e-10, 0], [0, 0, 0.5]]),
    "several at one site": (rows({1: 1}, {1: 1e-5}, {7: 1e-6}, {7: 1}), [1.0, 1e-10, 1e-12, 4.0]),
    "sites of other units": (rows({1: 1}, {1: 1}, {4: 1e6}), [1.0, 2.0, 1e-2]),
}


def analysed(instruments, ensemble, observations):
    """The Kalman part of a hybrid analysis that is not localized."""
    model = instruments.model()
    analysis = small_analysis("hybrid", MEMBERS, taper_length=1e6).double()
    predicted = model.operator(ensemble)
    mask = model.schedule[0].double()
    given = AnalysisInput(
        base=ensemble,
        forecast=ensemble,
        predicted=predicted,
        observation=torch.from_numpy(observations).nan_to_num(),
        mask=mask,
        error=model.standard_deviation,
        error_variance=model.standard_deviation.square(),
        phase=torch.tensor(0),
        tendency=ensemble,
        memory=torch.zeros(0),
        covariance=None,
        predict=model.operator,
    )
    mean, observed = ensemble.mean(-3, keepdim=True), predicted.mean(-3, keepdim=True)
    update = analysis._kalman_update(
        given, ensemble - mean, (predicted - observed) * mask, analysis.innovation(given, observed)
    )
    return (mean + update.increment).detach().squeeze(-3).numpy()


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_dense_kalman_update(case):
    matrix, covariance = CASES[case]
    ensemble = climatology().double()[:MEMBERS]
    instruments = LinearInstruments(matrix, covariance)
    numbers = RANDOM.standard_normal(len(matrix)) + matrix.reshape(len(matrix), -1).sum(1)
    x, g, r = ensemble.numpy()[:, 0], instruments.matrix[:, 0], instruments.covariance
    p = np.cov(x.T)
    gain = p @ g.T @ np.linalg.inv(g @ p @ g.T + r)
    dense = x.mean(0) + gain @ (numbers - g @ x.mean(0))
    found = analysed(instruments, ensemble, instruments.on_grid(numbers))
    np.testing.assert_allclose(found[0], dense, atol=1e-6)


@pytest.mark.parametrize("case", OTHER_UNITS)
def test_nothing_is_lost_for_its_unit(case):
    """Temperatures in kelvin beside humidities in kg/kg: each number counts for what its own error lets it tell."""
    matrix, covariance = OTHER_UNITS[case]
    instruments = LinearInstruments(matrix, covariance)
    x, g, r = climatology().double()[:MEMBERS].numpy()[:, 0], instruments.matrix[:, 0], instruments.covariance
    numbers, p = RANDOM.standard_normal(len(matrix)) + g.sum(1), np.cov(x.T)

    def updated(g, r, y):
        return x.mean(0) + p @ g.T @ np.linalg.solve(g @ p @ g.T + r, y - g @ x.mean(0))

    seen = instruments.model().schedule[0, 0].numpy()
    operator = instruments.model().operator(torch.eye(SITES, dtype=torch.float64)[:, None])[:, 0].T.numpy()[seen]
    on_grid = instruments.on_grid(numbers)[0, seen]
    assert np.isfinite(on_grid).all()
    np.testing.assert_allclose(updated(operator, np.eye(seen.sum()), on_grid), updated(g, r, numbers), atol=1e-5)


@pytest.mark.parametrize("case", ["correlated", "correlated at some sites", "several at one site", "between sites"])
def test_errors_on_the_grid_are_independent_and_of_unit_size(case):
    instruments = LinearInstruments(*CASES[case])
    errors = np.linalg.cholesky(instruments.covariance) @ RANDOM.standard_normal((len(instruments.matrix), 40_000))
    seen = instruments.model().schedule[0].numpy()
    found = instruments.on_grid(errors.T)[:, seen]
    np.testing.assert_allclose(np.cov(found.T), np.eye(seen.sum()), atol=0.04)
    state = np.ones((1, SITES))
    exact = instruments.on_grid(instruments.matrix.reshape(-1, SITES) @ state[0])
    np.testing.assert_allclose(exact[seen], instruments.model().operator(torch.from_numpy(state)).numpy()[seen])


def test_each_number_stays_where_it_was():
    """Whitened numbers see mostly what they saw."""
    operator = LinearInstruments(*CASES["correlated"])._reduced.operator
    assert (np.abs(operator).argmax(1) == np.arange(SITES)).all()


def test_what_depends_on_a_missing_number_is_missing():
    instruments = LinearInstruments(*CASES["correlated at some sites"])
    numbers = np.array([[1.0, 2.0, 3.0], [np.nan, 2.0, 3.0], [1.0, 2.0, np.inf]])
    seen = np.isfinite(instruments.on_grid(numbers)[:, 0])
    assert [np.flatnonzero(row).tolist() for row in seen] == [[1, 2, 7], [7], [1, 2]]
    with pytest.raises(ValueError, match=r"^numbers of shape \(5, 4\) must end in the 3 of the instruments\.$"):
        instruments.on_grid(np.ones((5, 4)))


@pytest.mark.parametrize(
    ("matrix", "covariance", "sentence"),
    [
        (np.eye(3), np.eye(3), r"matrix of shape \(3, 3\) must be finite, of shape \(number, channel, site\)"),
        (rows({0: 1}), np.eye(2), r"covariance of shape \(2, 2\) must be \(1, 1\), or \(1,\)"),
        (rows({0: 1}), [-1.0], "covariance must be finite, symmetric and positive definite"),
        (rows({0: 1}, {1: 1}), [[1, 2], [0, 1]], "covariance must be finite, symmetric"),
        (rows({0: 1}, {}), [1.0, 1.0], "matrix must measure something by every number"),
    ],
)
def test_what_is_no_instrument_is_one_sentence(matrix, covariance, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        LinearInstruments(matrix, covariance)
