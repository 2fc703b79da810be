"""How much of the class the latents tell: `python -m benchmarks.probe --url URL --model vae-mnist`.

Encodes training and test images through a running service and fits a linear classifier, logistic
regression, on the posteriors of the training part: on the means alone, and on means and
log-variances, each scaled to one standard deviation. The accuracy on the test part says how much a
client could do with /encode alone.
"""

import argparse

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from export.data import Images, load_split
from export.recipe import read_recipe
from ptheta_client import Client
from service.images import to_pixels

_CHUNK = 1000


def main() -> None:
    """Encode, fit, measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="vae-mnist")
    parser.add_argument("--recipe", help="whose data; by default the model's own")
    parser.add_argument("--train-images", type=int, default=40_000)
    options = parser.parse_args()
    data = read_recipe(options.recipe or options.model).data
    split = load_split(data)
    train = split.train[: options.train_images]
    with Client(options.url) as client:
        known, unseen = (encode(client, options.model, part) for part in (train, split.test))
    scale = known.std(axis=0) + 1e-6
    known, unseen = known / scale, unseen / scale
    latent_dim = known.shape[1] // 2
    for what, columns in (("means", slice(latent_dim)), ("means and log-variances", slice(None))):
        accuracy = probe(known[:, columns], train.labels, unseen[:, columns], split.test.labels)
        error = (accuracy * (1 - accuracy) / len(split.test)) ** 0.5
        print(
            f"{options.model}: a linear classifier of the {what} of {latent_dim} latents is right "
            f"on {accuracy:.2%} ± {error:.2%} of {len(split.test):,} test images"
        )


def encode(client: Client, model: str, images: Images) -> NDArray[np.float32]:
    """Return the means and log-variances of the posteriors of images, (N, 2·D)."""
    posteriors = []
    for start in range(0, len(images), _CHUNK):
        pixels = to_pixels(images[start : start + _CHUNK].values)
        latents = client.encode(pixels, model)
        posteriors.append(np.concatenate([latents.mean, latents.log_var], axis=1))
    return np.concatenate(posteriors)


def probe(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    unseen: NDArray[np.float32],
    truth: NDArray[np.int64],
) -> float:
    """Fit logistic regression with a little weight decay; return its accuracy on unseen images."""
    weight = torch.zeros(int(labels.max()) + 1, features.shape[1], requires_grad=True)
    bias = torch.zeros(len(weight), requires_grad=True)
    inputs, targets = torch.from_numpy(features), torch.from_numpy(labels)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(inputs @ weight.t() + bias, targets)
        loss = loss + 1e-5 * (weight**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        predicted = (torch.from_numpy(unseen) @ weight.t() + bias).argmax(dim=1)
    return float((predicted.numpy() == truth).mean())


if __name__ == "__main__":
    main()
