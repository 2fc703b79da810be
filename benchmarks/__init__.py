"""How fast the service is, against its ceilings and against a plain handler, in one run."""
