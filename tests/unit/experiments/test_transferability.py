"""Each estimator against an independent computation from its paper's formula."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import linalg, optimize
from scipy import stats as scipy_stats
from sklearn.linear_model import LogisticRegression

from tltasks.experiments import transferability
from tltasks.experiments.transferability import (
    ESTIMATORS,
    cluster_posteriors,
    cross_validated_probe,
    h_score,
    leep,
    left_out_neighbours,
    log_me,
    nleep,
    regularised_h_score,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def data(n: int = 60, width: int = 8, classes: int = 3, *, seed: int = 0, apart: float = 1.0) -> tuple[Floats, Ints]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return rng.normal(size=(n, width)) + apart * rng.normal(size=(classes, width))[labels], labels


def evidence(features: Floats, y: Floats, log_alpha: float, log_beta: float) -> float:
    """log N(y; 0, I/β + FF'/α), the marginal likelihood itself, without any basis or fixed point."""
    covariance = np.eye(len(y)) / np.exp(log_beta) + features @ features.T / np.exp(log_alpha)
    return float(scipy_stats.multivariate_normal(cov=covariance, allow_singular=False).logpdf(y))


@pytest.mark.parametrize(("n", "width"), [(60, 8), (30, 50)])
def test_log_me_is_the_maximum_of_the_marginal_likelihood(n: int, width: int) -> None:
    features, labels = data(n, width)
    best = []
    for k in range(3):
        y = (labels == k).astype(float)
        found = optimize.minimize(
            lambda at, y=y: -evidence(features, y, *at), [0.0, 0.0], method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-10, "maxiter": 4000},
        )  # fmt: skip
        best.append(-found.fun / n)
    assert log_me(features, labels) == pytest.approx(np.mean(best), abs=1e-6)


def test_h_score_is_the_share_of_the_indicators_that_the_features_span() -> None:
    """‖projection of the normalised class indicators onto the centred features‖², by least squares."""
    features, labels = data()
    x = features - features.mean(0)
    total = 0.0
    for k in range(3):
        share = (labels == k).mean()
        indicator = ((labels == k) - share) / np.sqrt(share * len(labels))
        weights = linalg.lstsq(x, indicator)[0]
        total += float(np.square(x @ weights).sum())
    assert h_score(features, labels) == pytest.approx(total, abs=1e-6)
    assert 0 <= total <= 2


def test_regularised_h_score_by_the_paper() -> None:
    """Ledoit and Wolf's shrinkage written out, and the trace over an explicit inverse."""
    features, labels = data(40, 60)
    x = features - features.mean(0)
    n, width = x.shape
    sample = x.T @ x / n
    mean = np.trace(sample) / width
    spread = np.square(sample - mean * np.eye(width)).sum() / width
    noise = sum(np.square(np.outer(row, row) - sample).sum() for row in x) / n**2 / width
    shrinkage = min(noise, spread) / spread
    inverse = np.linalg.inv((1 - shrinkage) * sample + shrinkage * mean * np.eye(width))
    between = sum((labels == k).mean() * np.outer(x[labels == k].mean(0), x[labels == k].mean(0)) for k in range(3))
    expected = (1 - shrinkage) * np.trace(inverse @ between)
    assert regularised_h_score(features, labels) == pytest.approx(expected, abs=1e-6)
    assert h_score(features, labels) == pytest.approx(2.0, abs=1e-6), "without it, all features are perfect here"


def by_loops(theta: Floats, labels: Ints) -> float:
    """LEEP as its definition reads."""
    n, total = len(labels), 0.0
    for i in range(n):
        likelihood = 0.0
        for z in range(theta.shape[1]):
            joint = sum(theta[j, z] for j in range(n) if labels[j] == labels[i]) / n
            likelihood += joint / (sum(theta[:, z]) / n) * theta[i, z]
        total += np.log(likelihood)
    return total / n


def test_leep_by_its_definition() -> None:
    _, labels = data()
    theta = np.random.default_rng(1).dirichlet(np.ones(5), len(labels))
    assert leep(theta, labels) == pytest.approx(by_loops(theta, labels), abs=1e-6)
    certain = np.eye(3)[labels]
    assert leep(certain, labels) == pytest.approx(0.0, abs=1e-9), "a source that knows the classes"


def test_nleep_is_leep_of_the_mixture_s_posteriors() -> None:
    """The posteriors by Bayes' rule from the mixture's own parameters, on components from an eigendecomposition."""
    features, labels = data(80, 10)
    posteriors = cluster_posteriors(features, n_classes=3, seed=0)
    assert posteriors.sum(1) == pytest.approx(1.0)
    x = features - features.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x)
    kept = int(np.searchsorted(np.cumsum(values[::-1]) / values.sum(), 0.8)) + 1
    components = x @ vectors[:, ::-1][:, :kept]
    known = transferability.PCA(0.8, svd_solver="full").fit_transform(features)
    components *= np.sign((components * known).sum(0)) / components.std()
    mixture = transferability.GaussianMixture(15, covariance_type="diag", reg_covar=1e-3, random_state=0)
    mixture.fit(known / known.std())
    densities = np.stack(
        [
            weight * scipy_stats.multivariate_normal(mean, np.diag(variance)).pdf(components)
            for weight, mean, variance in zip(mixture.weights_, mixture.means_, mixture.covariances_, strict=True)
        ],
        axis=1,
    )
    expected = by_loops(densities / densities.sum(1, keepdims=True), labels)
    assert nleep(features, labels, seed=0) == pytest.approx(expected, abs=1e-6)


def test_the_probe_is_a_penalised_logistic_regression_on_each_fold() -> None:
    features, labels = data(90, 6, apart=0.7)
    folds, correct = transferability.StratifiedKFold(5, shuffle=True, random_state=0), 0
    for fitted, held in folds.split(features, labels):
        centre, scale = features[fitted].mean(0), features[fitted].std(0)
        # scikit-learn's C is on the sum of losses: 1 / (l2 · rows)
        known = LogisticRegression(C=1 / (1e-3 * len(fitted)), tol=1e-8, max_iter=5000)
        known.fit((features[fitted] - centre) / scale, labels[fitted])
        correct += int((known.predict((features[held] - centre) / scale) == labels[held]).sum())
    assert cross_validated_probe(features, labels, seed=0) == pytest.approx(correct / 90, abs=1e-9)


def test_neighbours_leave_the_row_itself_out() -> None:
    features, labels = data(40, 5)
    twins, both = np.concatenate([features, features]), np.concatenate([labels, (labels + 1) % 3])
    assert left_out_neighbours(twins, both, k=1) == 0.0, "each row's nearest other is its twin of another class"
    assert left_out_neighbours(*data(40, 5, apart=20.0), k=3) == 1.0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_features_that_tell_classes_apart_score_higher(name: str) -> None:
    good, labels = data(90, 12, apart=2.0)
    poor = data(90, 12, apart=0.1)[0]
    theta = [np.exp(x[:, :4]) / np.exp(x[:, :4]).sum(1, keepdims=True) for x in (good, poor)]
    better, worse = (ESTIMATORS[name](x, labels, t, 0) for x, t in zip((good, poor), theta, strict=True))
    assert better is not None
    assert worse is not None
    assert better > worse
