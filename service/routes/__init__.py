"""One file per resource, with its request and response models."""
