"""Reference implementation of *Neglected Hessian component explains mysteries in sharpness regularization*."""

__version__ = "0.1.0"
