"""Estimates of how well a checkpoint would transfer, from its features on the target's training data alone.

All are higher for the better. Features are [rows, width] and labels whole numbers from 0; `theta` are a source
classifier's probabilities [rows, source classes].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import KFold, StratifiedKFold

from tltasks.metrics.arrays import Floats, Ints
from tltasks.metrics.neighbours import left_out_neighbours
from tltasks.training.linear_probe import PENALTY, fit_linear

ITERATIONS, TOLERANCE = 1000, 1e-10
"""Of LogME's fixed point; it converges to a relative change of the evidence below the tolerance."""
FOLDS = 5


def log_me(features: Floats, labels: Ints) -> float:
    """Logarithm of the maximum evidence of a Bayesian linear model of the labels, for each row; (−∞, ∞).

    The label of each class, as 0 or 1, is w·features + noise with priors w ~ N(0, 1/α) and noise ~ N(0, 1/β); the
    evidence is maximised over α and β by MacKay's fixed point, and averaged over classes.
    Source: You et al., ICML 2021, https://arxiv.org/abs/2102.11005, equation 2 and algorithm 1.
    """
    x = features.astype(np.float64)
    n, width = x.shape
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    sigma = s**2
    return float(np.mean([_evidence(u, sigma, (labels == k).astype(np.float64), n, width) for k in np.unique(labels)]))


def _evidence(u: Floats, sigma: Floats, y: Floats, n: int, width: int) -> float:
    """Maximum evidence of one regression, for each row, in the singular basis of the features."""
    z2 = (u.T @ y) ** 2
    rest = max(float(y @ y - z2.sum()), 0.0)
    alpha = beta = 1.0
    before = -np.inf
    for _ in range(ITERATIONS):
        gamma = float((sigma / (sigma + alpha / beta)).sum())
        m2 = float((sigma * z2 / (sigma + alpha / beta) ** 2).sum())
        residual = rest + float((z2 * (alpha / beta) ** 2 / (sigma + alpha / beta) ** 2).sum())
        # An infinite β would be a perfect fit, whose evidence has no maximum.
        value = _log_evidence(alpha, beta, sigma, m2, residual, n, width)
        if abs(value - before) <= TOLERANCE * max(1.0, abs(value)):
            break
        before = value
        alpha = min(gamma / max(m2, 1e-12), 1e12)
        beta = min(max(n - gamma, 1e-12) / max(residual, 1e-12), 1e12)
    return float(value) / n


def _log_evidence(alpha: float, beta: float, sigma: Floats, m2: float, residual: float, n: int, width: int) -> float:
    """log p(y | α, β) = D/2 log α + n/2 log β − β/2 ‖y − Fm‖² − α/2 ‖m‖² − ½ log |A| − n/2 log 2π, A = αI + βF'F."""
    log_det = float(np.log(alpha + beta * sigma).sum()) + (width - len(sigma)) * np.log(alpha)
    penalties = beta * residual + alpha * m2 + log_det + n * np.log(2 * np.pi)
    return float(0.5 * (width * np.log(alpha) + n * np.log(beta) - penalties))


def h_score(features: Floats, labels: Ints) -> float:
    """tr(cov(f)⁻¹ cov(E[f | y])): variance of the features between classes, in units of their own; [0, classes − 1].

    With fewer rows than features it is classes − 1 for every checkpoint; see `regularised_h_score`.
    Source: Bao et al., ICIP 2019, https://doi.org/10.1109/ICIP.2019.8803726, definition 2.
    """
    x = features - features.mean(0, dtype=np.float64)
    return float(np.trace(np.linalg.pinv(x.T @ x / len(x), hermitian=True) @ _between(x, labels)))


def regularised_h_score(features: Floats, labels: Ints) -> float:
    """The H-score with both covariances shrunk by Ledoit and Wolf's α; [0, classes − 1].

    Source: Ibrahim et al., ECML PKDD 2022, https://arxiv.org/abs/2110.06893, §4: (1 − α) tr(cov_α(f)⁻¹ cov(E[f | y])).
    """
    x = features - features.mean(0, dtype=np.float64)
    covariance, shrinkage = ledoit_wolf(x, assume_centered=True)
    return float((1 - shrinkage) * np.trace(np.linalg.solve(covariance, _between(x, labels))))


def _between(x: Floats, labels: Ints) -> Floats:
    """Covariance of class means of centred features, [width, width]."""
    names, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.zeros((len(names), x.shape[1]))
    np.add.at(means, inverse, x)
    means /= counts[:, None]
    between: Floats = (means * (counts / len(x))[:, None]).T @ means
    return between


def leep(theta: Floats, labels: Ints) -> float:
    """Mean log likelihood of the labels by Σ_z p(y | z) θ(x)_z, with p(y, z) counted on the same rows; (−∞, 0].

    Source: Nguyen et al., ICML 2020, https://arxiv.org/abs/2002.12462, equation 2.
    """
    names, inverse = np.unique(labels, return_inverse=True)
    joint = np.zeros((len(names), theta.shape[1]))
    np.add.at(joint, inverse, theta.astype(np.float64))
    conditional = joint / np.maximum(joint.sum(0), 1e-300)
    likelihood = np.einsum("nz,nz->n", conditional[inverse], theta.astype(np.float64))
    return float(np.log(np.maximum(likelihood, 1e-300)).mean())


def nleep(features: Floats, labels: Ints, *, seed: int) -> float:
    """LEEP with clusters for the source's classes: posteriors of a Gaussian mixture on principal components; (−∞, 0].

    Components hold 80 % of the variance, and there are five clusters for each class, or fewer where that would leave
    fewer than five rows to a cluster. Source: Li et al., CVPR 2021, https://arxiv.org/abs/2011.11200, §4.2.
    """
    return leep(cluster_posteriors(features, n_classes=len(np.unique(labels)), seed=seed), labels)


def cluster_posteriors(features: Floats, *, n_classes: int, seed: int) -> Floats:
    """Probabilities of each row's clusters, [rows, clusters]."""
    x = features.astype(np.float64)
    components = PCA(n_components=0.8, svd_solver="full").fit_transform(x)
    components /= components.std()  # so that the floor of the variances means the same for every checkpoint
    n_clusters = max(2, min(5 * n_classes, len(x) // 5))
    mixture = GaussianMixture(n_clusters, covariance_type="diag", reg_covar=1e-3, random_state=seed)
    posteriors: Floats = mixture.fit(components).predict_proba(components)
    return posteriors


def cross_validated_probe(features: Floats, labels: Ints, *, seed: int) -> float:
    """Accuracy of a linear probe on rows that it was not fitted to, by five folds stratified by class, or as
    many as the rarest class has rows; [0, 1].

    The probe is that of `stage: probe`, with its default penalty.
    """
    names, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    kind = StratifiedKFold if counts.min() > 1 else KFold
    folds = kind(min(FOLDS, max(2, int(counts.min()))), shuffle=True, random_state=seed)
    correct = 0
    for fitted, held in folds.split(features, numbers):
        fit = fit_linear(
            features[fitted].astype(np.float32), numbers[fitted].astype(np.int64), n_classes=len(names), l2=PENALTY
        )
        logits = features[held].astype(np.float64) @ fit.weight.numpy().T + fit.bias.numpy()
        correct += int((logits.argmax(1) == numbers[held]).sum())
    return correct / len(labels)


Estimator = Callable[[Floats, Ints, Floats | None, int], float | None]
"""Of features, labels, a source classifier's probabilities where it has any, and a seed."""

ESTIMATORS: dict[str, Estimator] = {
    "log_me": lambda f, y, theta, seed: log_me(f, y),
    "h_score": lambda f, y, theta, seed: h_score(f, y),
    "regularised_h_score": lambda f, y, theta, seed: regularised_h_score(f, y),
    "leep": lambda f, y, theta, seed: None if theta is None else leep(theta, y),
    "nleep": lambda f, y, theta, seed: nleep(f, y, seed=seed),
    "probe": lambda f, y, theta, seed: cross_validated_probe(f, y, seed=seed),
    "neighbours": lambda f, y, theta, seed: left_out_neighbours(f.astype(np.float64), y),
}
