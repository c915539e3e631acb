"""Symmetric matrices of inner products: by their lower triangle, in place, and what is made of their eigenvectors.

All are float64 in Fortran order, as BLAS has them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

#: Decompositions larger than this cost more than the iterations that they save.
LARGEST_DECOMPOSITION = 4096
#: Share of the largest eigenvalue below which one is rounding.
RANK_TOLERANCE = 1e-7


def zero_products(size: int) -> Matrix:
    """Make a matrix (size, size) for `add_products`."""
    return np.zeros((size, size), order="F")


def add_products(products: Matrix, rows: Matrix, scale: float = 1.0) -> None:
    """Add `scale` times rows' rows, of rows (n, D) in C order, to the lower triangle of `products` (D, D)."""
    from scipy.linalg import blas  # which answers do without

    blas.dsyrk(scale, rows.T, beta=1.0, c=products, lower=True, overwrite_c=True)


def gram(rows: NDArray[np.floating]) -> Matrix:
    """Return the inner products (n, n) of rows (n, D)."""
    exact = rows.astype(np.float64, copy=False)
    return np.asfortranarray(exact @ exact.T)  # numpy sees that it is symmetric, and does half of the work


def eigen(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """Values (r,) in rising order, none below zero, and vectors (r, r) of a lower triangle, which is used up.

    Divide and conquer is the fastest of LAPACK's ways, and faster than torch's, at sizes from 200 to 2048.
    """
    from scipy.linalg import eigh

    driver = "evd" if len(matrix) > 1 else "evr"  # SciPy 1.13 gives the first too little room for one number
    values, vectors = eigh(matrix, lower=True, overwrite_a=True, check_finite=False, driver=driver)
    return np.maximum(values, 0), vectors


def spanned(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """Values (r,) of a matrix (n, n) that are more than rounding, and their vectors (n, r); it is used up."""
    values, vectors = eigen(matrix)
    kept = values > RANK_TOLERANCE * values[-1]
    return values[kept], vectors[:, kept]
