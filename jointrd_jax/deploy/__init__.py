"""From a trained network to files that other runtimes, compilers and chips take."""

import os

# ONNX Runtime (1.32, on Linux too) reports its use to its makers: not from here, nor from processes that are
# started here, unless a user has set this.
os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')
