"""Pictures of patches and volumes: slices, projections, label overlays, sheets.

Numbers in, uint8 pictures out. Legend: X Y Z voxels in RAS order (X to the subject's right, Y forwards, Z upwards); H W
rows and columns of a picture. Axial pictures have the front at the top and the subject's left on the left. A colour is
(red, green, blue), 0 to 255.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]

PANEL: Colour = (13, 16, 23)  # near black, so that a picture keeps its contrast on a white page and on a dark one
LABEL: Colour = (255, 92, 72)
MASK: Colour = (92, 200, 255)
GAP = 6  # pixels between the pictures of a sheet


def axial_slice(volume_XYZ: np.ndarray, z: int) -> np.ndarray:
    """The slice `z` as a picture HxW, upright (see the module's orientation)."""
    return np.rot90(volume_XYZ[:, :, z])


def mid_slice(volume_XYZ: np.ndarray, axis: int = 2) -> np.ndarray:
    """The middle slice across `axis` as a picture HxW, upright."""
    return np.rot90(np.take(volume_XYZ, volume_XYZ.shape[axis] // 2, axis=axis))


def mip(volume_XYZ: np.ndarray, axis: int = 2) -> np.ndarray:
    """Maximum intensity projection along `axis` as a picture HxW, upright."""
    return np.rot90(volume_XYZ.max(axis=axis))


def grey(picture_HW: np.ndarray, low: float = 0.0, high: float = 255.0, *, gamma: float = 1.0) -> np.ndarray:
    """HxWx3 uint8: `low` is black, `high` white, clipped outside; `gamma` below 1 lifts the dark tones."""
    assert high > low, f"an empty window: {low} to {high}"
    level_HW = np.clip((np.asarray(picture_HW, np.float32) - low) / (high - low), 0.0, 1.0) ** gamma
    return np.repeat(np.round(level_HW * 255.0).astype(np.uint8)[..., None], 3, axis=2)


def overlay(
    picture_HW3: np.ndarray, mask_HW: np.ndarray, *, colour: Colour = LABEL, opacity: float = 0.6
) -> np.ndarray:
    """A copy of the picture with the mask painted over it."""
    painted = picture_HW3.copy()
    inside = np.asarray(mask_HW) > 0
    blend = (1.0 - opacity) * picture_HW3[inside] + opacity * np.asarray(colour, np.float32)
    painted[inside] = np.round(blend).astype(np.uint8)
    return painted


def outline(picture_HW3: np.ndarray, mask_HW: np.ndarray, *, colour: Colour = LABEL) -> np.ndarray:
    """A copy of the picture with the mask's border, one pixel inside the mask, drawn in `colour`."""
    from scipy import ndimage

    inside = np.asarray(mask_HW) > 0
    drawn = picture_HW3.copy()
    drawn[inside & ~ndimage.binary_erosion(inside, border_value=1)] = colour
    return drawn


def size_to_scale(
    picture_HW: np.ndarray, spacing_mm: Sequence[float], side: int, *, axis: int = 2, side_mm: float | None = None
) -> tuple[int, int]:
    """(height, width) in pixels of a picture across `axis`, where `side` pixels are `side_mm`, else the longer side."""
    width_mm, height_mm = (mm * n for mm, n in zip(np.delete(spacing_mm, axis), picture_HW.shape[1::-1], strict=True))
    scale = side / (side_mm or max(width_mm, height_mm))
    return max(1, round(height_mm * scale)), max(1, round(width_mm * scale))


def enlarge(picture: np.ndarray, height: int, width: int, *, smooth: bool = True) -> np.ndarray:
    """The picture (HxWx3 uint8) at another size: bicubic, or by repeating pixels."""
    method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize((width, height), method))


def enlarge_mask(mask_HW: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mask at another size, its corners rounded: interpolated and cut at one half."""
    image = Image.fromarray((np.asarray(mask_HW) > 0).astype(np.uint8) * 255)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)) >= 128


def sheet(rows: list[list[np.ndarray]]) -> np.ndarray:
    """One picture from rows of pictures (HxWx3 uint8), each in the middle of its column's and its row's largest."""
    assert rows and all(rows), "a sheet needs at least one picture in every row"
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    num_columns = max(len(row) for row in rows)
    widths = [max(row[j].shape[1] for row in rows if j < len(row)) for j in range(num_columns)]
    shape = (sum(heights) + GAP * (len(rows) + 1), sum(widths) + GAP * (num_columns + 1), 3)
    page = np.broadcast_to(np.asarray(PANEL, np.uint8), shape).copy()
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for picture, width in zip(row, widths, strict=False):
            y, x = top + (height - picture.shape[0]) // 2, left + (width - picture.shape[1]) // 2
            page[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
            left += width + GAP
        top += height + GAP
    return page


def encode_png(picture: np.ndarray) -> bytes:
    """PNG bytes of a HxW or HxWx3 uint8 picture; the same picture gives the same bytes (no date, no comment)."""
    assert picture.dtype == np.uint8, f"a picture is uint8, this is {picture.dtype}"
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
