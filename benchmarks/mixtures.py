"""Fit Gaussian mixtures to the data of a run of RNADE: `python -m benchmarks.mixtures NAME`.

What a density model of real-valued pixels must beat, on the same dequantized images: one Gaussian
with full covariance, and the best of several mixtures of such Gaussians, chosen on the validation
part. The figures are written into the run, from where `python -m export evaluate` takes them into
the card. Needs scikit-learn, which nothing else here does: `pip install scikit-learn`.
"""

import argparse
import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.__main__ import runs_folder
from export.data import Images, load_split
from export.evaluate import BASELINES_FILE, mean_metric
from export.recipe import Recipe
from service.manifest import Metric

NUM_COMPONENTS = (1, 10, 25, 50)
# Added to variances in [0, 1)²: that of the even noise within one of 256 grey levels, so that no
# component can be narrower than what is known to be there.
SMALLEST_VARIANCE = 1 / (12 * 256**2)


def main() -> None:
    """Fit, choose, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixtures", description=__doc__)
    parser.add_argument("name", metavar="NAME", help="name of the run")
    parser.add_argument("--iterations", type=int, default=40, help="most rounds of EM")
    options = parser.parse_args()
    run = runs_folder() / options.name
    recipe = Recipe.model_validate_json((run / "recipe.json").read_bytes())
    split = load_split(recipe.data)
    train = _unit_interval(
        Images(split.train.pixels, split.train.labels, dequantization_seed=recipe.training.seed)
    )
    validation = _unit_interval(split.validation)
    fits = {}
    for num_components in NUM_COMPONENTS:
        fit = _fit(train, num_components, options.iterations)
        bits = _bits_per_dim(fit, validation).mean()
        fits[num_components] = (bits, fit)
        print(f"{num_components} components: {bits:.4f} bits per dim of validation", flush=True)
    best = min(fits, key=lambda num_components: fits[num_components][0])
    test = _unit_interval(split.test)
    metrics = [
        _metric(f"bits_per_dim_of_{kind}", fits[key][1], test, recipe.protocol)
        for kind, key in (("a_gaussian", 1), (f"{best}_gaussians", best))
    ]
    text = json.dumps([metric.model_dump() for metric in metrics], indent=2)
    (run / BASELINES_FILE).write_text(text + "\n", encoding="utf-8")
    print(text)


def _unit_interval(images: Images) -> NDArray[np.float64]:
    """Return y = (g + u) / 256, shape (N, D)."""
    return (255 * images.values.reshape(len(images), -1).astype(np.float64) + 0.5) / 256


def _fit(rows: NDArray[np.float64], num_components: int, iterations: int) -> Any:
    from sklearn.mixture import GaussianMixture  # noqa: PLC0415

    mixture = GaussianMixture(
        num_components,
        reg_covar=SMALLEST_VARIANCE,
        max_iter=iterations,
        init_params="k-means++",
        random_state=0,
    )
    return mixture.fit(rows)


def _bits_per_dim(fit: Any, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return NLL / (D ln 2) + 8 of a density on [0, 1), shape (N,)."""
    bits: NDArray[np.float64] = -fit.score_samples(rows) / (rows.shape[1] * math.log(2)) + 8
    return bits


def _metric(name: str, fit: Any, rows: NDArray[np.float64], protocol: str) -> Metric:
    return mean_metric(name, _bits_per_dim(fit, rows), "bits per dim", protocol)


if __name__ == "__main__":
    main()
