"""The contract between compress and serve: what a bundle holds, how a student is asked, what it answers."""

import os

# ONNX Runtime reads it when it is imported: nobody is told what runs here.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
