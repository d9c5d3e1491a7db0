"""Curvature of losses: the Hessian, its Gauss-Newton part and the NME."""
