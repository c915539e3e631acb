"""Symmetric matrices by their lower triangle, in place: half the work of a product, and no second copy of the matrix.

All are float64 in Fortran order, as BLAS has them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def zero_products(size: int) -> Matrix:
    """Make a matrix (size, size) for `add_products`."""
    return np.zeros((size, size), order="F")


def add_products(products: Matrix, rows: Matrix, scale: float = 1.0) -> None:
    """Add `scale` times rows' rows, of rows (n, D) in C order, to the lower triangle of `products` (D, D)."""
    from scipy.linalg import blas  # which answers do without

    blas.dsyrk(scale, rows.T, beta=1.0, c=products, lower=True, overwrite_c=True)


def eigen(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """Values (r,) in rising order, none below zero, and vectors (r, r) of a lower triangle, which is used up.

    Divide and conquer is the fastest of LAPACK's ways, and faster than torch's, at sizes from 200 to 2048.
    """
    from scipy.linalg import eigh

    driver = "evd" if len(matrix) > 1 else "evr"  # SciPy 1.13 gives the first too little room for one number
    values, vectors = eigh(matrix, lower=True, overwrite_a=True, check_finite=False, driver=driver)
    return np.maximum(values, 0), vectors
