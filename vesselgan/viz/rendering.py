"""3D renderings of vessels: ray casting on the CPU; no torch, no display, no OpenGL.

Legend: X Y Z voxels in RAS order, P pixels that show a vessel. The view is from behind and above: the subject's left is
on the left, Z points upwards.
"""

import numpy as np
from scipy import ndimage

from vesselgan.viz.pictures import PANEL, Colour

FRAME: Colour = (84, 94, 112)
# The first is the largest component's; the others are far from it in hue, so that unconnected vessels stand out.
COMPONENTS: tuple[Colour, ...] = (
    (236, 106, 86),
    (86, 204, 242),
    (250, 214, 92),
    (138, 226, 140),
    (206, 146, 255),
    (255, 158, 205),
    (120, 170, 255),
    (196, 226, 92),
)

SMOOTHING_VOXELS = 0.6
SURFACE_LEVEL = 0.15  # a single voxel keeps 0.29 of its height under that smoothing, so it stays visible
NORMAL_SMOOTHING_VOXELS = 1.3
RAY_STEP = 0.5  # of the smallest voxel edge
SUPERSAMPLING = 2


def render_vessels(
    label_XYZ: np.ndarray,
    spacing_mm: tuple[float, float, float],
    angle_deg: float = 25.0,
    *,
    tilt_deg: float = 20.0,
    size: int = 320,
    colours: tuple[Colour, ...] | None = None,
    frame: bool = True,
) -> np.ndarray:
    """A shaded picture (size x size x 3, uint8) of the label's surface, seen from behind, Z upwards.

    Orthographic ray casting on the CPU: the label is smoothed a little, a ray stops where it first exceeds
    SURFACE_LEVEL, the light is Lambert's from the smoothed gradient, and distant vessels fade into the panel.
    `angle_deg` rotates the camera about Z, `tilt_deg` raises it. Every connected component has its own hue, the largest
    the first of COMPONENTS; `colours`: those of the label's values 1, 2, ... instead. `frame`: the patch's edges.
    """
    label = np.pad(np.asarray(label_XYZ) > 0, 2)  # a vessel cut by the patch's face gets a closed end
    spacing = np.asarray(spacing_mm, np.float64)
    view = _View(label.shape, spacing, angle_deg, tilt_deg, size * SUPERSAMPLING)
    pixels_P, depth_mm_P, position_P3 = _first_hits(label, view)
    pixel_count = view.size * view.size
    canvas = np.broadcast_to(np.asarray(PANEL, np.float32), (pixel_count, 3)).copy()
    depth_mm = np.full(pixel_count, np.inf)
    if len(pixels_P):
        depth_mm[pixels_P] = depth_mm_P
        if colours is None:
            hue_P = _component_rank(label, position_P3) % len(COMPONENTS)
        else:
            hue_P = np.maximum(_value_at(np.pad(np.asarray(label_XYZ, np.uint8), 2), position_P3), 1) - 1
        hues_P3 = np.asarray(colours or COMPONENTS, np.float32)[hue_P]
        canvas[pixels_P] = _shade(label, view, depth_mm_P, position_P3, hues_P3)
    depth_mm_HW = depth_mm.reshape(view.size, view.size)
    canvas = _darken_edges(canvas.reshape(view.size, view.size, 3), depth_mm_HW, view)
    if frame:
        _draw_frame(canvas, depth_mm_HW, view)
    small = canvas.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3).mean(axis=(1, 3))
    return np.round(np.clip(small, 0, 255)).astype(np.uint8)


class _View:
    """An orthographic camera: millimetres from the box's middle along right, up and away from the eye, and pixels."""

    def __init__(self, shape: tuple[int, ...], spacing_mm: np.ndarray, angle_deg: float, tilt_deg: float, size: int):
        angle, tilt = np.deg2rad(angle_deg), np.deg2rad(tilt_deg)
        right = np.array([np.cos(angle), np.sin(angle), 0.0])  # the camera stands behind and looks forwards
        away = np.array([-np.sin(angle) * np.cos(tilt), np.cos(angle) * np.cos(tilt), -np.sin(tilt)])
        self.axes = np.stack([right, np.cross(right, away), away])  # rows: right, up, away
        self.shape, self.spacing_mm, self.size = shape, spacing_mm, size
        self.middle = (np.asarray(shape) - 1) / 2.0
        half_mm = (np.asarray(shape) - 4) * spacing_mm / 2.0
        corners = np.array(np.meshgrid(*[(-h, h) for h in half_mm], indexing="ij")).reshape(3, -1)
        self.corners_mm = self.axes @ corners
        reach_mm = np.abs(self.corners_mm[:2]).max() + spacing_mm.max()
        self.mm_per_pixel = 2.0 * reach_mm / (size * 0.97)
        self.near_mm, self.far_mm = self.corners_mm[2].min(), self.corners_mm[2].max()

    def to_camera(self, voxel_P3: np.ndarray) -> np.ndarray:
        return ((voxel_P3 - self.middle) * self.spacing_mm) @ self.axes.T

    def to_voxels(self, camera_P3: np.ndarray) -> np.ndarray:
        return camera_P3 @ self.axes / self.spacing_mm + self.middle

    def pixel_centres_mm(self, pixels_P: np.ndarray) -> np.ndarray:
        row, column = np.divmod(pixels_P, self.size)
        middle = (self.size - 1) / 2.0
        return np.stack([(column - middle) * self.mm_per_pixel, (middle - row) * self.mm_per_pixel], axis=1)


def _first_hits(label: np.ndarray, view: _View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels whose ray hits the surface, the depth in mm and the voxel position of the hit (P, P, Px3).

    Only rays near a vessel are followed, each between the nearest and the farthest vessel voxel around its pixel.
    """
    field = ndimage.gaussian_filter(label.astype(np.float32), SMOOTHING_VOXELS)
    pixels_P, start_P, stop_P = _candidates(field, view)
    step_mm = RAY_STEP * float(view.spacing_mm.min())
    line_P2 = view.pixel_centres_mm(pixels_P)
    depth_P = start_P.copy()
    before_P = np.zeros(len(pixels_P), np.float32)
    active = np.arange(len(pixels_P))
    hit_pixels, hit_depths = [], []
    while len(active):
        camera = np.column_stack([line_P2[active], depth_P[active]])
        value = ndimage.map_coordinates(field, view.to_voxels(camera).T, order=1, mode="constant")
        hit = value >= SURFACE_LEVEL
        if hit.any():
            hits = active[hit]
            rise = np.maximum(value[hit] - before_P[hits], 1e-6)
            back = np.clip((value[hit] - SURFACE_LEVEL) / rise, 0.0, 1.0) * step_mm
            hit_pixels.append(hits)
            hit_depths.append(depth_P[hits] - back)
        before_P[active] = value
        depth_P[active] += step_mm
        active = active[~hit & (depth_P[active] <= stop_P[active])]
    if not hit_pixels:
        return np.empty(0, int), np.empty(0), np.empty((0, 3))
    hits, depth_mm = np.concatenate(hit_pixels), np.concatenate(hit_depths)
    return pixels_P[hits], depth_mm, view.to_voxels(np.column_stack([line_P2[hits], depth_mm]))


def _candidates(field: np.ndarray, view: _View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels that may see a vessel and the depth range in mm to search, from tiles a voxel's diagonal wide."""
    occupied = np.argwhere(ndimage.maximum_filter(field >= SURFACE_LEVEL / 2, 3))
    margin_mm = float(np.linalg.norm(view.spacing_mm))
    tile = max(1, int(np.ceil(margin_mm / view.mm_per_pixel)))
    num_tiles = -(-view.size // tile)
    near, far = np.full((num_tiles, num_tiles), np.inf), np.full((num_tiles, num_tiles), -np.inf)
    if len(occupied):
        camera = view.to_camera(occupied)
        middle = (view.size - 1) / 2.0
        row = np.clip((middle - camera[:, 1] / view.mm_per_pixel) // tile, 0, num_tiles - 1).astype(int)
        column = np.clip((camera[:, 0] / view.mm_per_pixel + middle) // tile, 0, num_tiles - 1).astype(int)
        np.minimum.at(near, (row, column), camera[:, 2])
        np.maximum.at(far, (row, column), camera[:, 2])
    near, far = ndimage.minimum_filter(near, 3, mode="nearest"), ndimage.maximum_filter(far, 3, mode="nearest")
    near_P, far_P = (np.repeat(np.repeat(a, tile, 0), tile, 1)[: view.size, : view.size].ravel() for a in (near, far))
    pixels = np.flatnonzero(np.isfinite(near_P))
    return pixels, near_P[pixels] - margin_mm, far_P[pixels] + margin_mm


def _shade(
    label: np.ndarray, view: _View, depth_mm_P: np.ndarray, position_P3: np.ndarray, hues_P3: np.ndarray
) -> np.ndarray:
    """Colours Px3 (float, 0 to 255): the surface's own, Lambert's light from the upper left, fading with depth."""
    smooth = ndimage.gaussian_filter(label.astype(np.float32), NORMAL_SMOOTHING_VOXELS)
    slopes = [
        ndimage.map_coordinates(slope, position_P3.T, order=1, mode="nearest") / edge_mm
        for slope, edge_mm in zip(np.gradient(smooth), view.spacing_mm, strict=True)
    ]
    normal_P3 = -np.stack(slopes, axis=1) @ view.axes.T  # outwards, in right / up / away
    normal_P3 /= np.maximum(np.linalg.norm(normal_P3, axis=1, keepdims=True), 1e-9)
    light = np.array([-0.45, 0.60, -0.66])
    lambert_P = np.clip(normal_P3 @ (light / np.linalg.norm(light)), 0.0, None)
    shine_P = 0.22 * lambert_P**24
    lit_P3 = hues_P3 * (0.26 + 0.80 * lambert_P)[:, None] + 255.0 * shine_P[:, None]
    nearness_P = 1.0 - np.clip((depth_mm_P - view.near_mm) / (view.far_mm - view.near_mm), 0.0, 1.0)
    fade_P1 = (0.45 + 0.55 * nearness_P)[:, None]
    return fade_P1 * lit_P3 + (1.0 - fade_P1) * np.asarray(PANEL, np.float32)


def _component_rank(label: np.ndarray, position_P3: np.ndarray) -> np.ndarray:
    """For each surface point the rank by size of the component it belongs to: 0 the largest."""
    components_XYZ, count = ndimage.label(label, np.ones((3, 3, 3)))
    order = np.argsort(-np.bincount(components_XYZ.ravel(), minlength=count + 1)[1:], kind="stable")
    rank = np.zeros(count + 1, np.int64)
    rank[order + 1] = np.arange(count)
    return rank[_value_at(components_XYZ, position_P3)]


def _value_at(values: np.ndarray, position_P3: np.ndarray) -> np.ndarray:
    """The value above 0 at or next to each surface point, which lies up to a voxel outside."""
    around = np.where(values > 0, values, ndimage.maximum_filter(values, 3)).astype(np.int64)
    index = np.clip(np.round(position_P3).astype(int), 0, np.asarray(values.shape) - 1)
    return around[tuple(index.T)]


def _darken_edges(canvas: np.ndarray, depth_mm: np.ndarray, view: _View) -> np.ndarray:
    """The canvas with a dark rim where a vessel passes in front of another."""
    nearest = ndimage.minimum_filter(depth_mm, 3)
    with np.errstate(invalid="ignore"):
        behind = (depth_mm - nearest > 3.0 * float(view.spacing_mm.max())) & np.isfinite(depth_mm)
    canvas = canvas.copy()
    canvas[behind] = 0.35 * canvas[behind] + 0.65 * np.asarray(PANEL, np.float32)
    return canvas


def _draw_frame(canvas: np.ndarray, depth_mm: np.ndarray, view: _View) -> None:
    """Draws the patch's twelve edges into the canvas, hidden behind vessels."""
    corners = view.corners_mm.T
    pairs = [(i, i | bit) for i in range(8) for bit in (1, 2, 4) if not i & bit]
    weight = np.linspace(0.0, 1.0, 2 * view.size)[:, None]
    for a, b in pairs:
        line = (1.0 - weight) * corners[a] + weight * corners[b]
        middle = (view.size - 1) / 2.0
        column = np.round(line[:, 0] / view.mm_per_pixel + middle).astype(int)
        row = np.round(middle - line[:, 1] / view.mm_per_pixel).astype(int)
        near = 1.0 - (line[:, 2] - view.near_mm) / (view.far_mm - view.near_mm)
        is_visible = line[:, 2] <= depth_mm[row, column]
        strength = (0.35 + 0.65 * near[is_visible])[:, None]
        canvas[row[is_visible], column[is_visible]] = strength * np.asarray(FRAME) + (1 - strength) * np.asarray(PANEL)
