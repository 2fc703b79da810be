"""One file per family of models; a new file here is a new family."""
