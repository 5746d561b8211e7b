"""Distances between images in the features of the network that FID uses, on the grid that an audit compares them on.

Q query images, R references, X Y Z cells, F features
"""

from collections.abc import Sequence

import numpy as np
import torch

from vesselgan.core.errors import DataError
from vesselgan.evaluation.features import Extractor, network_input
from vesselgan.metrics.oriented_distances import UNRELATED, has_content

BATCH_SIZE = 32
LEAST_SD = 1e-6
"""Of a feature over the references; one that varies less tells nothing."""


def feature_distances(
    query_QXYZ: np.ndarray,
    reference_RXYZ: np.ndarray,
    extractor: Extractor,
    *,
    mirrorings: Sequence[tuple[int, ...]],
    device: torch.device,
) -> np.ndarray:
    """[Q, R], float32: sqrt(2 - 2 cos) of features standardised over the references, the smallest over a query's
    mirrorings (axes of X Y Z): 0 for equal images, 1.41 for unrelated ones and for images without content.

    Raises DataError for features that are not finite.
    """
    reference_RF = _features(reference_RXYZ, extractor, device)
    mean_F, sd_F = reference_RF.mean(0), reference_RF.std(0)
    kept_F = sd_F > LEAST_SD
    unit_RF = _unit((reference_RF - mean_F)[:, kept_F] / sd_F[kept_F])
    cosine_QR = np.full((len(query_QXYZ), len(reference_RXYZ)), -1.0)
    for axes in mirrorings:
        query_QF = _features(np.flip(query_QXYZ, tuple(axis + 1 for axis in axes)), extractor, device)
        np.maximum(cosine_QR, _unit((query_QF - mean_F)[:, kept_F] / sd_F[kept_F]) @ unit_RF.T, out=cosine_QR)
    distance_QR = np.sqrt(np.maximum(2 - 2 * cosine_QR, 0))
    shows_both_QR = has_content(query_QXYZ)[:, None] & has_content(reference_RXYZ)
    return np.where(shows_both_QR, distance_QR, UNRELATED).astype(np.float32)


@torch.inference_mode()
def _features(image_NXYZ: np.ndarray, extractor: Extractor, device: torch.device) -> np.ndarray:
    """float64 [N, F]"""
    network, features = extractor.network.to(device), []
    for start in range(0, len(image_NXYZ), BATCH_SIZE):
        inputs = [network_input(image_XYZ, "zero", (0, 0))[0] for image_XYZ in image_NXYZ[start : start + BATCH_SIZE]]
        batch_NCXYZ = torch.from_numpy(np.stack(inputs)).unsqueeze(1).to(device)
        features.append(network(batch_NCXYZ).double().cpu().numpy())
    features_NF = np.concatenate(features)
    if not np.isfinite(features_NF).all():
        raise DataError("the features of some images are not finite; check image.weights")
    return features_NF


def _unit(vector_NF: np.ndarray) -> np.ndarray:
    """Of length 1; a zero vector stays."""
    length_N1 = np.linalg.norm(vector_NF, axis=1, keepdims=True)
    return np.asarray(vector_NF / np.where(length_N1 > 0, length_N1, 1))
