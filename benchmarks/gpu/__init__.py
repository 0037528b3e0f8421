"""What holds and what it takes on a GPU: `python -m benchmarks.gpu`, see docs/gpu.md."""
