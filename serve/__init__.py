"""A bundle served: the engine, the analysis, the REST API, and the clients of both."""

import bundle  # noqa: F401  # before ONNX Runtime
