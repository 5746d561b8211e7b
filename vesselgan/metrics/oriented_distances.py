"""Distances between all patches of two sets, each the smallest over mirrorings, turns by 90 degrees and small shifts.

A patch becomes block means on a grid of at most MAX_SIDE per axis. The inner part of one patch is compared with windows
of the other, both standardised to mean 0 and standard deviation 1: brightness and contrast do not count. The distance
is the root mean square difference per voxel: 0 for equal patches, 1.41 for unrelated ones. A patch without content,
constant or but for a few cells, is 1.41 from every patch: it shows nobody.

Q queries, R references, X Y Z voxels of the grid, S shifts, V voxels of the inner part, P parity components, F flips
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import permutations, product

import numpy as np

from vesselgan.core.errors import DataError
from vesselgan.metrics.masks import LARGEST, as_finite

MAX_SIDE = 16
"""Cells per axis that patches are compared on."""
MAX_SHIFT = 1
"""Cells along each axis, either way."""
MIN_CELLS = 8
"""That a patch's variance must be spread over (participation ratio): of a mask's one cell, every shift is a copy."""
BLOCK_Q, BLOCK_R = 256, 8  # compared at once; their products stay in the processor's cache
UNRELATED = math.sqrt(2)


def block_sizes(patch_shape: Sequence[int]) -> tuple[int, ...]:
    """Voxels per cell of the grid, along each axis."""
    return tuple(math.ceil(side / MAX_SIDE) for side in patch_shape)


def on_grid(patches: Iterable[np.ndarray]) -> np.ndarray:
    """Patches [X, Y, Z] of one shape as block means, float32 [N, X, Y, Z]. DataError for values that are not finite."""
    from skimage.transform import downscale_local_mean

    grids = []
    for patch_XYZ in patches:
        patch_XYZ = np.asarray(as_finite(patch_XYZ, "patch", largest=LARGEST, ndim=3), np.float32)
        grids.append(downscale_local_mean(patch_XYZ, block_sizes(patch_XYZ.shape)).astype(np.float32))
    if len({grid.shape for grid in grids}) != 1:
        raise DataError(f"patches of shapes {sorted({grid.shape for grid in grids})}: expected one shape")
    return np.stack(grids)


def distances(
    query_QXYZ: np.ndarray, reference_RXYZ: np.ndarray, advance: Callable[[int], object] = lambda count: None
) -> np.ndarray:
    """[Q, R], float32: the smallest distance in any mirroring, shift and, for equal X and Y, exchange of X and Y.

    Mirrorings and the exchange make all turns by 90 degrees about Z, the orientations of the augmentation. Turns about
    other axes, where the grid's sides allow, are compared without a shift. Raises DataError for different shapes.
    advance: called with the number of references that are done.
    """
    shape = query_QXYZ.shape[1:]
    if query_QXYZ.ndim != 4 or shape != reference_RXYZ.shape[1:]:
        raise DataError(f"patches of {query_QXYZ.shape} and {reference_RXYZ.shape}: no distance")
    inner = _inner(shape)
    query_PQV = _parities(_standardised(query_QXYZ[:, *inner]))
    largest_QR = np.zeros((len(query_QXYZ), len(reference_RXYZ)), np.float32)
    for start in range(0, len(reference_RXYZ), BLOCK_R):
        block_BXYZ = reference_RXYZ[start : start + BLOCK_R]
        largest_QB = largest_QR[:, start : start + BLOCK_R]
        for axes in permutations(range(3)):
            if tuple(shape[axis] for axis in axes) != shape:
                continue
            turned_BXYZ = block_BXYZ.transpose(0, *(axis + 1 for axis in axes))
            windows_PSV = _parities(np.concatenate(list(_windows(turned_BXYZ, inner, is_shifted=axes[2] == 2))))
            for q in range(0, len(query_QXYZ), BLOCK_Q):
                rows = slice(q, q + BLOCK_Q)
                product_QS = _largest_products([query_QV[rows] for query_QV in query_PQV], windows_PSV)
                product_QB = product_QS.reshape(len(product_QS), -1, len(block_BXYZ)).max(1)
                np.maximum(largest_QB[rows], product_QB, out=largest_QB[rows])
        advance(len(block_BXYZ))
    num_voxels = math.prod(part.stop - part.start for part in inner)
    return np.sqrt(np.maximum(2 - 2 * largest_QR / num_voxels, 0))


def has_content(patch_NXYZ: np.ndarray) -> np.ndarray:
    """bool [N]: whether the inner part of a patch varies, over MIN_CELLS or more."""
    inner_NXYZ = _standardised(patch_NXYZ[:, *_inner(patch_NXYZ.shape[1:])])
    return np.asarray(inner_NXYZ.any((1, 2, 3)))


def _inner(shape: Sequence[int]) -> tuple[slice, ...]:
    """All but the margins that shifts take; whole along a short axis."""
    margins = (MAX_SHIFT if side > 2 * MAX_SHIFT + 1 else 0 for side in shape)
    return tuple(slice(margin, side - margin) for margin, side in zip(margins, shape, strict=True))


def _windows(block_BXYZ: np.ndarray, inner: Sequence[slice], *, is_shifted: bool) -> Iterator[np.ndarray]:
    """The standardised windows of every shift, or of none."""
    for shift in product(*(range(-part.start, part.start + 1) if is_shifted else (0,) for part in inner)):
        window = (slice(part.start + step, part.stop + step) for part, step in zip(inner, shift, strict=True))
        yield _standardised(block_BXYZ[:, *window])


def _standardised(patch_NXYZ: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1 of each; one without content becomes zeros."""
    patch_NXYZ = patch_NXYZ - patch_NXYZ.mean((1, 2, 3), keepdims=True, dtype=np.float64)
    square_NXYZ = np.square(patch_NXYZ)
    variance_N = square_NXYZ.mean((1, 2, 3), keepdims=True)
    # (sum of squares)^2 / sum of fourth powers: k for k equal cells among many others.
    fourth_N = np.square(square_NXYZ).sum((1, 2, 3), keepdims=True)
    has_content_N = (variance_N > 1e-12) & (square_NXYZ.sum((1, 2, 3), keepdims=True) ** 2 >= MIN_CELLS * fourth_N)
    scaled_NXYZ = patch_NXYZ / np.sqrt(np.where(has_content_N, variance_N, 1))
    return np.where(has_content_N, scaled_NXYZ, 0).astype(np.float32)


def _parities(patch_NXYZ: np.ndarray) -> list[np.ndarray]:
    """Eight orthogonal components, even or odd along each axis, flat. A mirroring changes the sign of some of them, so
    products with all eight mirrored patches are signed sums of the components' products.
    """
    components = [patch_NXYZ]
    for axis in (1, 2, 3):
        components = [half for component in components for half in _even_and_odd(component, axis)]
    return [component.reshape(len(patch_NXYZ), -1) for component in components]


def _even_and_odd(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """(the component even along `axis`, with the middle plane; the odd one): n - n // 2 and n // 2 planes."""
    planes = np.moveaxis(array, axis, 0)
    half = len(planes) // 2
    first, last, middle = planes[:half], planes[::-1][:half], planes[half : len(planes) - half]
    root = np.float32(math.sqrt(0.5))
    even = np.concatenate([(first + last) * root, middle])
    return np.moveaxis(even, 0, axis), np.moveaxis((first - last) * root, 0, axis)


def _largest_products(query_PQV: Sequence[np.ndarray], window_PSV: Sequence[np.ndarray]) -> np.ndarray:
    """[Q, S]: the largest dot product over the eight mirrorings, by a Walsh-Hadamard transform over the components."""
    products = [query_QV @ window_SV.T for query_QV, window_SV in zip(query_PQV, window_PSV, strict=True)]
    for bit in (1, 2, 4):
        for i in range(8):
            if not i & bit:
                products[i], products[i | bit] = products[i] + products[i | bit], products[i] - products[i | bit]
    largest_QS = products[0]
    for product_QS in products[1:]:
        np.maximum(largest_QS, product_QS, out=largest_QS)
    return largest_QS
