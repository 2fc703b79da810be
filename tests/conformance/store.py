"""A store that reaches every kind of answer."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.service.bundles import (
    add_calibration,
    class_completer,
    class_generator,
    class_log_prob,
    linear_bound,
    linear_encoder,
    write_bundle,
    write_vae_store,
)

CLASSES = ("Coat", "Bag", "Boot")

_NUM_HELD_OUT = 100


def write_complete_store(store: Path) -> Path:
    """Write models of every density, conditional and not, with encoders, orderings, p-values."""
    write_vae_store(store)
    exact: dict[Any, str] = {
        "generate": class_completer(len(CLASSES)),
        "log_prob": class_log_prob(),
    }
    write_bundle(
        store,
        "tiny-class",
        exact,
        labels=CLASSES,
        prior="uniform",
        latent=False,
        ordering="raster",
    )
    bound: dict[Any, str] = {
        "generate": class_generator(len(CLASSES)),
        "log_prob": linear_bound(conditional=True),
        "encode": linear_encoder(),
    }
    write_bundle(store, "tiny-cvae", bound, labels=CLASSES)
    rng = np.random.default_rng(0)
    for name, preparations in (
        ("tiny-grey", ["none"]),
        ("tiny-vae", ["none"]),
        ("tiny-binary", ["threshold", "stochastic"]),
    ):
        scores = {
            f"{preparation}.{figure}": rng.normal(size=_NUM_HELD_OUT)
            for preparation in preparations
            for figure in ("log_prob", "code_bits")
        }
        add_calibration(store / name / "1", scores)
    return store
