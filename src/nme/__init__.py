"""Reference implementation of *Neglected Hessian component explains mysteries in sharpness regularization*."""

__version__ = "0.1.0"

import os

# Large tensors in huge pages, where the system has them: a third of a loader's time goes into small ones. PyTorch asks
# for this before its first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
