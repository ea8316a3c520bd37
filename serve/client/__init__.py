"""The client of a deepcode-serve: deepcode-check for pipelines, `api.Client` for programs."""
