"""Serve bundles of generative image models over HTTP, without torch."""

__version__ = "0.1.0"
