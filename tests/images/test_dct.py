"""The matrix of the discrete cosine transform against its definition and SciPy's transform."""

from __future__ import annotations

import numpy as np
import pytest

from clipmole.images.dct import dct_matrix


@pytest.mark.parametrize("size", [8, 32])
def test_the_dct_is_orthonormal_and_scipys(size: int) -> None:
    scipy_fft = pytest.importorskip("scipy.fft")
    matrix = dct_matrix(size)
    assert matrix @ matrix.T == pytest.approx(np.eye(size), abs=1e-12)
    assert matrix[0] == pytest.approx(np.full(size, size**-0.5), abs=1e-15)
    x = np.random.default_rng(0).normal(size=size)
    assert matrix @ x == pytest.approx(scipy_fft.dct(x, norm="ortho"), abs=1e-12)
