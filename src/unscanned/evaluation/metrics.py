"""How far a synthetic volume is from the acquired one: plain functions of two arrays, and one entry for each metric.

Every function takes the acquired target, the synthetic volume and an optional mask; the two arrays must lie on one grid
and one intensity scale. None guesses a data range, and none lets a NaN through.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from unscanned.errors import DatasetError, SettingsError

__all__ = [
    "METRICS",
    "Metric",
    "hfen",
    "mae",
    "mse",
    "mutual_information",
    "psnr",
    "psnr_nie",
    "psnr_one_gain",
    "slice_mse",
    "ssim",
    "ssim_map",
    "tissue_dice",
    "tissue_volumes",
]

Array = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

_SSIM_SIGMA = 1.5
_SSIM_RADIUS = 5
_LOG_SIGMA = 1.5
_LOG_RADIUS = 7
_CLASSES = 3
_WITHOUT_OUTLIERS = (1, 99)
_BINS = 64


@dataclass(frozen=True)
class Metric:
    """A function of two volumes, and all that tables, terminal, files and the report say of it.

    Attributes:
        function: Takes the target, the synthetic volume and an optional mask, and `data_range` where there is one.
        title: Heading.
        unit: Of its values; empty for a pure number.
        better: Which values are better.
        digits: Decimals that are shown.
        definition: What it computes, for those who would compute it again.
        words: What it means, in plain words.
        scale: Intensities that the function gets; in unit scale, 1 is a percentile of the target inside the head.
        data_range: Range of these intensities, for a function that takes it.
        in_short_tables: Whether it stands in the narrow tables of the terminal and the docs too.
        by_tissue: Whether it has a meaning for the scattered voxels of one tissue alone.
    """

    function: Callable[..., float]
    title: str
    unit: str
    better: Literal["lower", "higher"]
    digits: int
    definition: str
    words: str
    scale: Literal["z-scores", "unit scale"] = "z-scores"
    data_range: float | None = None
    in_short_tables: bool = True
    by_tissue: bool = False

    @property
    def heading(self) -> str:
        """The title with an arrow that shows which values are better."""
        return f"{self.title} {'↓' if self.better == 'lower' else '↑'}"

    def __call__(self, target: Array, synthetic: Array, mask: Mask | None = None) -> float:
        """Return the value for two volumes in the metric's scale."""
        options = {} if self.data_range is None else {"data_range": self.data_range}
        return self.function(target, synthetic, mask, **options)


def mae(target: Array, synthetic: Array, mask: Mask | None = None) -> float:
    """Return the mean absolute error, in the unit of the arrays.

    Args:
        target: Acquired volume, any shape.
        synthetic: Synthetic volume, same shape.
        mask: Voxels to count, same shape; all when unset.

    Raises:
        DatasetError: Different shapes, a voxel that is not finite, or an empty mask.

    References:
        C. J. Willmott and K. Matsuura, Advantages of the mean absolute error (MAE) over the root mean square error
        (RMSE) in assessing average model performance, Climate Research 30, 2005.

    Example:
        >>> mae(np.zeros((2, 2, 2)), np.full((2, 2, 2), 0.5))
        0.5
    """
    target, synthetic = _voxels(target, synthetic, mask)
    return float(np.mean(np.abs(synthetic - target), dtype=np.float64))


def mse(target: Array, synthetic: Array, mask: Mask | None = None) -> float:
    """Return the mean squared error, in the squared unit of the arrays.

    Args and errors are those of `mae`.

    References:
        Z. Wang and A. C. Bovik, Mean squared error: love it or leave it?, IEEE Signal Processing Magazine 26(1), 2009.
    """
    target, synthetic = _voxels(target, synthetic, mask)
    return float(np.mean(np.square(synthetic - target), dtype=np.float64))


def psnr_nie(target: Array, synthetic: Array, mask: Mask | None = None) -> float:
    """Return the peak signal-to-noise ratio in dB as the authors of the method compute it.

    The peak is the larger of the two volumes' maxima, so one bright synthetic voxel raises its own score, and the value
    depends on where the scale has its zero. It serves to compare with the reference; `psnr` serves to compare methods.

    Args and errors are those of `mae`. Equal volumes give infinity.

    Raises:
        DatasetError: Also when neither volume has a positive voxel, so that there is no peak.

    References:
        D. Nie et al., IEEE TBME 65(12), 2018; `psnr` in github.com/ginobilinie/medSynthesis.
    """
    target, synthetic = _voxels(target, synthetic, mask)
    peak = float(max(target.max(), synthetic.max()))
    if peak <= 0:
        raise DatasetError(
            "no voxel is positive, so this PSNR has no peak", where="psnr_nie", found=f"maximum {peak:g}"
        )
    return _decibel(peak, float(np.mean(np.square(synthetic - target), dtype=np.float64)))


def psnr(target: Array, synthetic: Array, mask: Mask | None = None, *, data_range: float) -> float:
    """Return the peak signal-to-noise ratio in dB for a declared range of the data.

    Args:
        target: Acquired volume, any shape.
        synthetic: Synthetic volume, same shape.
        mask: Voxels to count, same shape; all when unset.
        data_range: Peak, in the unit of the arrays; the same for every volume that is compared.

    Returns:
        20 log10(data_range / RMSE); infinity for equal volumes.

    Raises:
        DatasetError: Different shapes, a voxel that is not finite, or an empty mask.
        SettingsError: `data_range` is not positive and finite.

    References:
        Q. Huynh-Thu and M. Ghanbari, Scope of validity of PSNR in image/video quality assessment, Electronics Letters
        44(13), 2008.
    """
    _check_range(data_range)
    return _decibel(data_range, mse(target, synthetic, mask))


def ssim(target: Array, synthetic: Array, mask: Mask | None = None, *, data_range: float) -> float:
    """Return the mean structural similarity, with a Gaussian window of sigma 1.5 voxels.

    With a mask the whole map is averaged inside it. Without one, the mean is over the voxels whose 11-voxel window lies
    inside the volume, which is what scikit-image and MONAI return.

    Args:
        target: Acquired volume, at least 11 voxels along each axis.
        synthetic: Synthetic volume, same shape.
        mask: Voxels to average the map over, same shape.
        data_range: Range of the data, in the unit of the arrays.

    Returns:
        At most 1, which equal volumes have.

    Raises:
        DatasetError: Different shapes, a voxel that is not finite, an empty mask, or a volume smaller than the window.
        SettingsError: `data_range` is not positive and finite.

    References:
        Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE TIP 13(4), 2004.
    """
    if mask is None:
        inner = (slice(_SSIM_RADIUS, -_SSIM_RADIUS),) * np.ndim(target)
        return float(ssim_map(target, synthetic, data_range=data_range)[inner].mean(dtype=np.float64))
    _check(target, synthetic, mask)
    box = _box(mask, margin=_SSIM_RADIUS, least=2 * _SSIM_RADIUS + 1)
    # A margin of one window's radius makes the map inside the mask the same as that of the whole volume.
    values = ssim_map(target[box], synthetic[box], data_range=data_range)
    return float(values[mask[box]].mean(dtype=np.float64))


def ssim_map(target: Array, synthetic: Array, *, data_range: float) -> Array:
    """Return the structural similarity at every voxel; borders are reflected. See `ssim`."""
    from skimage.metrics import structural_similarity

    _check_range(data_range)
    _check(target, synthetic, None)
    if min(target.shape) <= 2 * _SSIM_RADIUS:
        raise DatasetError(
            "the volume is smaller than the window of SSIM",
            where="ssim",
            found=f"shape {target.shape}",
            expected=f"at least {2 * _SSIM_RADIUS + 1} voxels along each axis",
        )
    _, values = structural_similarity(
        np.asarray(target, np.float32),
        np.asarray(synthetic, np.float32),
        data_range=data_range,
        gaussian_weights=True,
        sigma=_SSIM_SIGMA,
        use_sample_covariance=False,
        full=True,
    )
    return values


def psnr_one_gain(target: Array, synthetic: Array, mask: Mask | None = None, *, data_range: float) -> float:
    """Return `psnr` after the synthetic volume was multiplied by the one number that fits the target best.

    The scale of a scan that was never made has no truth, since gains and echo times differ between scanners. What is
    left is the error of the picture: the gain is sum(target synthetic) / sum(synthetic^2) over the voxels that count.

    Args, values and errors are those of `psnr`.

    References:
        R. Grosse et al., Ground truth dataset and baseline evaluations for intrinsic image algorithms, ICCV 2009: the
        error after the best factor, in windows there.
    """
    _check_range(data_range)
    target, synthetic = (array.astype(np.float64) for array in _voxels(target, synthetic, mask))
    power = float(np.sum(np.square(synthetic)))
    gain = float(np.sum(target * synthetic)) / power if power > 0 else 0.0
    return _decibel(data_range, float(np.mean(np.square(gain * synthetic - target))))


def hfen(target: Array, synthetic: Array, mask: Mask | None = None) -> float:
    """Return the high-frequency error norm: the error of edges and fine detail, as a share of the target's.

    Both volumes go through a Laplacian of a Gaussian of sigma 1.5 voxels, cut off at 7. The norm of the difference is
    divided by that of the target. With a mask the error counts inside it alone, as if the volumes were equal outside.

    Args and errors are those of `mae`, for volumes (i, j, k).

    Returns:
        0 for equal volumes; 1 for one without any detail. Infinity where the target has none.

    References:
        S. Ravishankar and Y. Bresler, MR image reconstruction from highly undersampled k-space data by dictionary
        learning, IEEE TMI 30(5), 2011: the kernel, in two dimensions.
    """
    _check(target, synthetic, mask)
    if mask is not None:
        box = _box(mask, margin=_LOG_RADIUS, least=1)
        target, synthetic, mask = target[box], synthetic[box], mask[box]
    difference = np.asarray(synthetic, np.float32) - np.asarray(target, np.float32)
    if mask is not None:
        difference = np.where(mask, difference, np.float32(0))
    error, detail = (
        float(np.linalg.norm(filtered if mask is None else filtered[mask]))
        for filtered in map(_detail, (difference, np.asarray(target, np.float32)))
    )
    return error / detail if detail > 0 else (math.inf if error > 0 else 0.0)


def _detail(volume: Array) -> Array:
    return ndimage.gaussian_laplace(volume, _LOG_SIGMA, truncate=_LOG_RADIUS / _LOG_SIGMA)


def mutual_information(target: Array, synthetic: Array, mask: Mask | None = None, *, data_range: float) -> float:
    """Return the normalized mutual information: how well one volume's intensities tell the other's, whatever the curve.

    (H(target) + H(synthetic)) / H(target, synthetic), of a joint histogram of 64 x 64 bins from 0 to the data range;
    what lies beyond counts in the outermost bins.

    Args and errors are those of `psnr`.

    Returns:
        1 for volumes that tell nothing of each other, 2 for volumes that tell all.

    References:
        C. Studholme, D. L. G. Hill and D. J. Hawkes, An overlap invariant entropy measure of 3D medical image
        alignment, Pattern Recognition 32(1), 1999.
    """
    _check_range(data_range)
    one, other = (np.clip(array, 0, data_range).ravel() for array in _voxels(target, synthetic, mask))
    joint = np.histogram2d(one, other, bins=_BINS, range=[(0, data_range)] * 2)[0]
    both = _entropy(joint)
    return (_entropy(joint.sum(0)) + _entropy(joint.sum(1))) / both if both > 0 else 2.0


def _entropy(counts: Array) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-np.sum(shares * np.log(shares)))


def tissue_dice(target: Array, synthetic: Array, mask: Mask | None = None) -> float:
    """Return how far the same tissues lie at the same places: the mean Dice overlap of three classes.

    Each volume is segmented alone, by the two thresholds that separate its own intensities best (Otsu's method for
    three classes): dark, middle and bright. That is no anatomy, but it needs no model and is the same for all. Where
    a voxel is so far beyond all others that these cannot be told apart, intensities are cut at their 1st and 99th
    percentile.

    Args and errors are those of `mae`.

    Returns:
        1 where all classes agree, 0 where none overlaps. A class that neither volume has agrees.

    References:
        L. R. Dice, Measures of the amount of ecologic association between species, Ecology 26(3), 1945.
        P.-S. Liao, T.-S. Chen and P.-C. Chung, A fast algorithm for multilevel thresholding, Journal of Information
        Science and Engineering 17(5), 2001.
    """
    one, other = map(_classes, _voxels(target, synthetic, mask))
    overlaps = []
    for number in range(_CLASSES):
        first, second = one == number, other == number
        total = np.count_nonzero(first) + np.count_nonzero(second)
        overlaps.append(2 * np.count_nonzero(first & second) / total if total else 1.0)
    return float(np.mean(overlaps))


def tissue_volumes(target: Array, synthetic: Array, mask: Mask | None = None) -> float:
    """Return how far the volumes of the three classes of `tissue_dice` are from the target's: the mean relative error.

    Args and errors are those of `tissue_dice`, and so is the reference for the classes.

    Returns:
        0 where all volumes agree; a class counts by |synthetic - target| / target.

    References:
        T. Heimann et al., Comparison and evaluation of methods for liver segmentation from CT datasets, IEEE TMI 28(8),
        2009: the relative volume difference, which has a sign there.
    """
    one, other = (
        np.bincount(_classes(array).ravel(), minlength=_CLASSES) for array in _voxels(target, synthetic, mask)
    )
    present = one > 0
    return float(np.mean(np.abs(other - one)[present] / one[present]))


def _classes(values: Array) -> npt.NDArray[np.integer]:
    """Return for each voxel, in a row, 0, 1 or 2: dark, middle or bright, by the volume's own intensities."""
    from skimage.filters import threshold_multiotsu

    values = values.ravel()
    try:
        thresholds = threshold_multiotsu(values, _CLASSES)
    except ValueError:  # one voxel is so far beyond all others that these share a bin of the histogram
        low, high = np.percentile(values, _WITHOUT_OUTLIERS).astype(values.dtype)
        try:
            thresholds = threshold_multiotsu(np.clip(values, low, high), _CLASSES)
        except ValueError:  # there are no three intensities to tell apart
            return np.zeros(values.shape, np.intp)
    return np.digitize(values, thresholds)


def slice_mse(target: Array, synthetic: Array, mask: Mask | None = None, *, axis: int) -> npt.NDArray[np.float64]:
    """Return the mean squared error of every slice across one axis.

    Args:
        target: Acquired volume, shape (i, j, k).
        synthetic: Synthetic volume, same shape.
        mask: Voxels to count, same shape; all when unset.
        axis: Axis that the slices are counted along: in RAS+, 0 is sagittal, 1 coronal, 2 axial.

    Returns:
        One value for each index along `axis`; NaN where a slice has no voxel in the mask.

    Raises:
        DatasetError: Different shapes, a voxel that is not finite, or an empty mask.
    """
    _check(target, synthetic, mask)
    others = tuple(other for other in range(target.ndim) if other != axis)
    squared = np.square(np.asarray(synthetic, np.float32) - np.asarray(target, np.float32))
    if mask is None:
        return squared.mean(axis=others, dtype=np.float64)
    count = np.count_nonzero(mask, axis=others)
    total = np.sum(squared, axis=others, dtype=np.float64, where=mask)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _decibel(peak: float, squared_error: float) -> float:
    return math.inf if squared_error == 0 else 20 * math.log10(peak / math.sqrt(squared_error))


def _voxels(target: Array, synthetic: Array, mask: Mask | None) -> tuple[Array, Array]:
    _check(target, synthetic, mask)
    return (target, synthetic) if mask is None else (target[mask], synthetic[mask])


def _check(target: Array, synthetic: Array, mask: Mask | None) -> None:
    for name, array in (("synthetic volume", synthetic), ("mask", mask)):
        if array is not None and np.shape(array) != np.shape(target):
            raise DatasetError(
                f"the {name} has another shape than the target", found=np.shape(array), expected=np.shape(target)
            )
    if mask is not None and not mask.any():
        raise DatasetError("the mask is empty, so there is nothing to score", where="mask")
    if not np.size(target):
        raise DatasetError("the volume has no voxels", found=f"shape {np.shape(target)}")
    for name, array in (("target", target), ("synthetic volume", synthetic)):
        # Summing is several times faster than testing each voxel, and is finite only if every voxel is.
        if not math.isfinite(float(np.sum(array, dtype=np.float64))):
            count = int(np.count_nonzero(~np.isfinite(array)))
            raise DatasetError(f"the {name} has voxels that are not finite", found=f"{count} of {np.size(array)}")


def _check_range(data_range: float) -> None:
    if not (math.isfinite(data_range) and data_range > 0):
        raise SettingsError("the data range must be positive", where="data_range", found=data_range)


def _box(mask: Mask, *, margin: int, least: int) -> tuple[slice, ...]:
    """The mask's bounding box, widened by `margin` and to at least `least` voxels where the volume allows."""
    box = []
    for extent, length in zip(ndimage.find_objects(mask, max_label=1)[0], mask.shape, strict=True):
        start, stop = max(extent.start - margin, 0), min(extent.stop + margin, length)
        stop = min(max(stop, start + least), length)
        box.append(slice(max(min(start, stop - least), 0), stop))
    return tuple(box)


METRICS: dict[str, Metric] = {
    "mae": Metric(
        mae,
        title="MAE",
        unit="z-scores",
        better="lower",
        digits=3,
        definition="mean absolute error of z-scores",
        words="On average, how far a voxel is from the acquired one. 0 is perfect.",
        by_tissue=True,
    ),
    "mse": Metric(
        mse,
        title="MSE",
        unit="z-scores²",
        better="lower",
        digits=3,
        definition="mean squared error of z-scores",
        words="The same with large errors counted more. 0 is perfect.",
        in_short_tables=False,
    ),
    "psnr_nie": Metric(
        psnr_nie,
        title="PSNR, Nie",
        unit="dB",
        better="higher",
        digits=2,
        definition="20 log10(largest z-score of either volume / root mean squared error), as the authors of the method "
        "and the reference compute it; a bright synthetic voxel raises it",
        words="Signal-to-noise ratio as the method's authors compute it, to compare with their numbers.",
    ),
    "psnr": Metric(
        psnr,
        title="PSNR",
        unit="dB",
        better="higher",
        digits=2,
        definition="20 log10(1 / root mean squared error) in unit scale (1 = a percentile of the target inside the "
        "head)",
        words="Signal-to-noise ratio against a fixed peak. Higher is better; 3 dB is half the squared error.",
        scale="unit scale",
        data_range=1.0,
        by_tissue=True,
    ),
    "ssim": Metric(
        ssim,
        title="SSIM",
        unit="",
        better="higher",
        digits=3,
        definition="structural similarity in unit scale, data range 1, Gaussian window of sigma 1.5 voxels (Wang et "
        "al. 2004); at most 1",
        words="How alike local structure is. 1 is perfect.",
        scale="unit scale",
        data_range=1.0,
    ),
    "psnr_one_gain": Metric(
        psnr_one_gain,
        title="PSNR, one gain",
        unit="dB",
        better="higher",
        digits=2,
        definition="psnr after the synthetic volume was multiplied by the one number that fits the target best",
        words="PSNR with the overall brightness forgiven, which differs between scanners.",
        scale="unit scale",
        data_range=1.0,
        in_short_tables=False,
    ),
    "hfen": Metric(
        hfen,
        title="HFEN",
        unit="",
        better="lower",
        digits=3,
        definition="norm of the difference after a Laplacian of a Gaussian of sigma 1.5 voxels, over that of the "
        "target; the difference counts inside the region alone (Ravishankar and Bresler 2011)",
        words="Error of edges and fine detail. 0 is perfect, 1 is an image without any.",
        scale="unit scale",
        in_short_tables=False,
    ),
    "mutual_information": Metric(
        mutual_information,
        title="NMI",
        unit="",
        better="higher",
        digits=3,
        definition="normalized mutual information, 64 bins from 0 to 1 in unit scale (Studholme et al. 1999); 1 to 2",
        words="How well one image tells the other, whatever the curve between them. 1 is nothing, 2 is all.",
        scale="unit scale",
        data_range=1.0,
        in_short_tables=False,
    ),
    "tissue_dice": Metric(
        tissue_dice,
        title="Dice",
        unit="",
        better="higher",
        digits=3,
        definition="mean overlap (Dice 1945) of dark, middle and bright voxels, each image divided by thresholds of "
        "its own (Otsu's for three classes, Liao et al. 2001)",
        words="Whether dark, middle and bright tissue lies where it should. 1 is perfect.",
        scale="unit scale",
        in_short_tables=False,
    ),
    "tissue_volumes": Metric(
        tissue_volumes,
        title="Volume error",
        unit="",
        better="lower",
        digits=3,
        definition="mean relative error of the volumes of these three classes (the relative volume difference of "
        "Heimann et al. 2009, without its sign)",
        words="Whether there is as much of each as there should be. 0 is perfect.",
        scale="unit scale",
        in_short_tables=False,
    ),
}
