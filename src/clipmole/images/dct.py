"""The discrete cosine transform as a matrix: D @ x transforms a vector, D @ X @ D.T a block of pixels.

In: a size. Out: a matrix. It knows nothing of images or networks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def dct_matrix(size: int) -> NDArray[np.float64]:
    """The orthonormal DCT-II, float64 (size, size).

    D[k, n] = c_k cos(pi (2 n + 1) k / (2 size)) with c_0 = sqrt(1 / size), else sqrt(2 / size): Ahmed, Natarajan and
    Rao, "Discrete cosine transform", IEEE Trans. Computers 1974.
    """
    k, n = np.mgrid[:size, :size]
    matrix: NDArray[np.float64] = np.sqrt(2 / size) * np.cos(np.pi * (2 * n + 1) * k / (2 * size))
    matrix[0] /= np.sqrt(2)
    return matrix
