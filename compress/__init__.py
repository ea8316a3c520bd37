"""Teacher and code in, a checked bundle out."""

import bundle  # noqa: F401  # before ONNX Runtime
