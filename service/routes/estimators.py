"""Importance samples in requests: how many, and what the figures that rest on them are called."""

from typing import Any

from pydantic import Field

from service.bounds import rows_per_image
from service.errors import InvalidRequestError
from service.model import Model
from service.routes.uploads import ImageOptions
from service.service import Service


class ScoreOptions(ImageOptions):
    """Which model scores, and how exactly."""

    num_importance_samples: int | None = Field(
        default=None,
        ge=1,
        description="Bounds only: K of the importance-weighted bound; 1, the ELBO, by default.",
    )

    @property
    def num_samples(self) -> int:
        """K; of an exact density, 1."""
        return self.num_importance_samples or 1


def check_samples(service: Service, model: Model, num_samples: int | None) -> None:
    """Refuse samples of what is exact, and more of them than the server allows.

    Raises:
        InvalidRequestError: So many cannot be drawn.
    """
    limit = service.settings.max_importance_samples
    if num_samples is not None and not model.is_bound:
        raise InvalidRequestError.of_field(
            "num_importance_samples", f"{model.reference} is exact: it draws no samples"
        )
    if num_samples is not None and num_samples > limit:
        raise InvalidRequestError.of_field(
            "num_importance_samples", f"at most {limit}, not {num_samples}"
        )


def check_rows(model: Model, num_images: int, num_samples: int) -> None:
    """Refuse more samples than can ever wait in the queue at once.

    Raises:
        InvalidRequestError: The rows of the request exceed the queue's bound.
    """
    limit = model.graphs["log_prob"].max_queue_rows
    num_rows = num_images * (rows_per_image(num_samples) if model.is_bound else 1)
    if num_rows > limit:
        field = "num_importance_samples" if num_samples > 1 else "images"
        raise InvalidRequestError.of_field(
            field,
            f"{num_images} images with {num_samples} samples are {num_rows} rows, at most {limit} "
            "are possible: ask for fewer samples, or send fewer images",
        )


def estimator(model: Model, num_samples: int) -> dict[str, Any]:
    """Name what a log-likelihood is, as answers tell it."""
    if not model.is_bound:
        return {"estimator": "exact"}
    name = "elbo" if num_samples == 1 else "iwae"
    return {"estimator": name, "num_importance_samples": num_samples}
