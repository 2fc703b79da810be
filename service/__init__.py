"""Serve bundles of generative image models over HTTP, without torch."""
