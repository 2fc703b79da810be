"""What one would write first: FastAPI, no batching, one image per request, run inline."""

import io
import os
from pathlib import Path

import numpy as np
import onnxruntime
from fastapi import FastAPI, Response
from PIL import Image
from pydantic import BaseModel

from service.images import to_pixels
from service.manifest import read_manifest
from service.noise import draw

_folder = Path(os.environ["BENCHMARK_BUNDLE"])
_noise = read_manifest(_folder).noise
_options = onnxruntime.SessionOptions()
_options.intra_op_num_threads = 1
_session = onnxruntime.InferenceSession(_folder / "generate.onnx", _options)

app = FastAPI()


class SampleRequest(BaseModel):
    """Which image."""

    seed: int


@app.post("/sample")
async def sample(body: SampleRequest) -> Response:
    """Draw one image as a PNG."""
    seeds = np.array([body.seed], dtype=np.uint64)
    noise = draw(_noise.prior, seeds, np.zeros_like(seeds), _noise.shape)
    (image,) = _session.run(["image"], {"noise": noise})
    buffer = io.BytesIO()
    Image.fromarray(to_pixels(image)[0]).save(buffer, "png", compress_level=1)
    return Response(buffer.getvalue(), media_type="image/png")


@app.get("/readyz")
async def readyz() -> dict[str, str]:
    """Answer once the graph is loaded."""
    return {"status": "ready"}
