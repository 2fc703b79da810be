"""Train generative image models and convert them to bundles for the service."""
