"""Serve bundles of generative image models over HTTP, without torch."""

import os

__version__ = "0.1.0"

# From 1.29 on, ONNX Runtime for Linux reports the names and hashes of models to its maker unless it
# is told not to before it is loaded. Whoever wants that can set the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
