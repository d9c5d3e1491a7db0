"""The parts of ``benchmarks/gpu.py``: right, reproducible, fast, true."""
