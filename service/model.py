"""What a loaded model can do, in arrays: its graphs behind one interface."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.access import caller
from service.anomaly import AnomalyScore, Preparation
from service.batcher import Outcome, Rows
from service.bounds import combine, given_rows, join_weights, sample_rows
from service.errors import InferenceFailedError
from service.graph import INDEX, LABEL, SEED, Graph
from service.images import ImageArray
from service.manifest import Manifest, Role
from service.noise import draw, draw_labels

T = TypeVar("T")
FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


class Model:
    """A bundle in memory.

    Attributes:
        reference: Name and version, `nade-mnist@1`.
        operations: What a client can ask of it.

    Args:
        manifest: What it is.
        graphs: Its graphs by role.
        folder: Where its files are.
        anomaly: How unusual images are told, if it is calibrated, by their preparation.
    """

    def __init__(
        self,
        manifest: Manifest,
        graphs: Mapping[Role, Graph],
        folder: Path,
        anomaly: Mapping[Preparation, AnomalyScore],
    ) -> None:
        self.anomaly = anomaly
        self.manifest = manifest
        self.graphs = graphs
        self.folder = folder
        self.reference = manifest.reference
        self.operations = frozenset(manifest.operations)

    @property
    def has_temperature(self) -> bool:
        """Whether it draws from conditionals whose logits can be divided."""
        return "temperature" in self.graphs["generate"].session.inputs

    @property
    def has_conditionals(self) -> bool:
        """Whether it can tell how surprising each pixel is."""
        graph = self.graphs.get("log_prob")
        return graph is not None and "conditional_log_prob" in graph.session.outputs

    @property
    def is_bound(self) -> bool:
        """Whether its log_prob is estimated from importance samples."""
        return self.manifest.density == "bound"

    def noise_of(self, seed: int, index: int) -> FloatArray:
        """Draw the noise of one image, of the shape that the manifest says."""
        noise = self.manifest.noise
        seeds, indices = np.array([seed], np.uint64), np.array([index], np.uint64)
        drawn: FloatArray = draw(noise.prior, seeds, indices, noise.shape)[0]
        return drawn

    def label_of(self, seed: int, index: int) -> int:
        """Draw the class of one image of a class-conditional model."""
        seeds, indices = np.array([seed], np.uint64), np.array([index], np.uint64)
        return int(draw_labels(seeds, indices, len(self.manifest.labels))[0])

    async def generate(
        self,
        rows: Rows,
        finish: Callable[[Rows], T],
        *,
        wanted: Collection[str] | None = None,
        timeout_s: float,
    ) -> Outcome[T]:
        """Turn noise into images.

        Args:
            rows: Either `noise`, or `seed` and `index` of each image; perhaps `temperature`,
                `known` and `known_mask`. A class-conditional model needs `label` beside `noise`;
                beside `seed` it may be left out, and is drawn.
            finish: Makes the answer of `image` (N, C, H, W), its grey levels `pixels`, its
                `noise` and, of a class-conditional model, its `label` (N,), in a worker thread.
            wanted: Which of them it needs, by default all, and always the label; a large call keeps
                no others.
            timeout_s: Deadline, queueing included.

        Raises:
            ProblemError: As the batcher's `submit`, or the caller's quota has not so many rows.
        """
        graph = self.graphs["generate"]
        if wanted is not None:
            wanted = (*wanted, "is_finite", *((LABEL,) if self.manifest.labels else ()))

        def check_and_finish(outputs: Rows) -> T:
            is_finite = outputs["is_finite"].tolist()
            if not all(is_finite):
                graph.metrics.on_non_finite(is_finite.count(False))
                raise InferenceFailedError(
                    f"{self.reference} made an image that is not finite; try another seed, and "
                    "report it"
                )
            return finish(outputs)

        return await _submit(graph, rows, check_and_finish, timeout_s=timeout_s, wanted=wanted)

    async def log_prob(
        self,
        images: ImageArray,
        finish: Callable[[Rows], T],
        *,
        labels: IntArray | None = None,
        num_samples: int = 1,
        seed: int = 0,
        noise: FloatArray | None = None,
        with_conditionals: bool = True,
        timeout_s: float,
    ) -> Outcome[T]:
        """Score images.

        Args:
            images: Shape (N, C, H, W), in [0, 1]; 0 and 1 for a binary model.
            finish: Makes the answer of `log_prob` (N,) in nats and what else the graph returns;
                of a bound that is `std_error` (N,), and `log_weight` (N, K) where `noise` is given.
            labels: The class of each image, (N,); a class-conditional model needs it.
            num_samples: Importance samples per image; bounds only.
            seed: Of the importance samples.
            noise: That of the importance samples, (N, K, D), instead of their number and seed.
            with_conditionals: Whether `finish` needs `conditional_log_prob`, large as the images.
            timeout_s: Deadline, queueing included.

        Raises:
            ProblemError: As the batcher's `submit`, or the caller's quota has not so many rows.
        """
        graph = self.graphs["log_prob"]
        wanted = None
        if noise is not None:
            rows, num_samples = given_rows(images, noise, labels), noise.shape[1]
        elif self.is_bound:
            rows = sample_rows(images, seed, num_samples, labels)
        else:
            rows = _image_rows(images, labels)
            wanted = None if with_conditionals else ("log_prob",)

        def join_and_finish(outputs: Rows) -> T:
            if self.is_bound:
                weights = (
                    {"log_weight": join_weights(outputs, len(images), num_samples)}
                    if noise is not None
                    else {}
                )
                outputs = {**combine(outputs, len(images), num_samples), **weights}
            graph.metrics.on_non_finite(int(np.isnan(outputs["log_prob"]).sum()))
            return finish(outputs)

        return await _submit(graph, rows, join_and_finish, timeout_s=timeout_s, wanted=wanted)

    async def log_prob_of_classes(
        self,
        images: ImageArray,
        finish: Callable[[NDArray[np.floating]], T],
        *,
        num_samples: int = 1,
        seed: int = 0,
        timeout_s: float,
    ) -> Outcome[T]:
        """Score images given each class in turn, by the same importance samples.

        Args:
            images: Shape (N, C, H, W), as of `log_prob`.
            finish: Makes the answer of log p(x given y) in nats, (N, K), in a worker thread.
            num_samples: Importance samples per image and class; bounds only.
            seed: Of the importance samples.
            timeout_s: Deadline, queueing included.

        Raises:
            ProblemError: As the batcher's `submit`, or the caller's quota has not so many rows.
        """
        num_images, num_classes = len(images), len(self.manifest.labels)
        classes = np.arange(num_classes).repeat(num_images)
        rows: Rows
        if self.is_bound:
            of_one = sample_rows(images, seed, num_samples)
            rows = {name: np.concatenate([array] * num_classes) for name, array in of_one.items()}
            rows[LABEL] = classes.repeat(len(of_one[SEED]) // num_images)
        else:
            rows = _image_rows(np.concatenate([images] * num_classes), classes)

        def join(outputs: Rows) -> T:
            if self.is_bound:
                outputs = combine(outputs, len(classes), num_samples)
            log_prob = outputs["log_prob"].reshape(num_classes, num_images).T
            return finish(log_prob)

        graph = self.graphs["log_prob"]
        wanted = None if self.is_bound else ("log_prob",)
        return await _submit(graph, rows, join, timeout_s=timeout_s, wanted=wanted)

    async def encode(
        self,
        images: ImageArray,
        finish: Callable[[Rows], T],
        *,
        labels: IntArray | None = None,
        timeout_s: float,
    ) -> Outcome[T]:
        """Find the latents of images.

        Args:
            images: Shape (N, C, H, W), in [0, 1]; 0 and 1 for a binary model.
            finish: Makes the answer of the posterior's `mean` and `log_var`, (N, D) each.
            labels: The class of each image, (N,); a class-conditional encoder needs it.
            timeout_s: Deadline, queueing included.

        Raises:
            ProblemError: As the batcher's `submit`, or the caller's quota has not so many rows.
        """
        graph = self.graphs["encode"]
        rows = _image_rows(images, labels if LABEL in graph.session.inputs else None)

        def check_and_finish(outputs: Rows) -> T:
            for name in ("mean", "log_var"):
                finite = np.isfinite(outputs[name]).all(axis=1)
                if not finite.all():
                    graph.metrics.on_non_finite(int((~finite).sum()))
                    raise InferenceFailedError(
                        f"{self.reference} encoded an image as a latent that is not finite"
                    )
            return finish(outputs)

        return await _submit(graph, rows, check_and_finish, timeout_s=timeout_s)


def _submit(
    graph: Graph,
    rows: Rows,
    finish: Callable[[Rows], T],
    *,
    timeout_s: float,
    wanted: Collection[str] | None = None,
) -> Awaitable[Outcome[T]]:
    """Queue rows, charged to whoever asks; who is refused for want of room is not charged."""
    asking = caller.get()
    if asking is not None:
        num_rows = len(next(iter(rows.values())))
        graph.batcher.admit(num_rows)
        asking.take(num_rows)
    return graph.batcher.submit(rows, finish, timeout_s=timeout_s, wanted=wanted)


def _image_rows(images: ImageArray, labels: IntArray | None) -> dict[str, NDArray[Any]]:
    return {"image": images} if labels is None else {"image": images, LABEL: labels}


def seeded_rows(seed: int, first_index: int, num_images: int) -> dict[str, NDArray[Any]]:
    """Name the noise of consecutive images of one seed."""
    seeds = np.empty(num_images, dtype=np.uint64)
    seeds.fill(seed)
    indices = np.arange(first_index, first_index + num_images, dtype=np.uint64)
    return {SEED: seeds, INDEX: indices}
