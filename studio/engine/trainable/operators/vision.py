"""Operators on images: resizing, sampling, regions, boxes."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from studio.engine.trainable.operators.registry import Call, axis_of, ints, operator


@operator("Upsample")
def upsample(call: Call, x: Tensor, scales: Tensor | None = None) -> Tensor:
    """The forerunner of Resize: asymmetric coordinates."""
    factors = call.attributes["scales"] if scales is None else scales.tolist()
    sizes = [math.floor(n * f) for n, f in zip(x.shape, factors, strict=True)]
    mode = call.get("mode", "nearest")
    for axis, (size, factor) in enumerate(zip(sizes, factors, strict=True)):
        if size != x.shape[axis]:
            places = torch.arange(size, dtype=torch.float64) / factor
            x = _resize_axis(
                x,
                axis,
                places,
                factor,
                "linear" if mode == "linear" else "nearest",
                "floor",
                -0.75,
                False,
                False,
            )
    return x


@operator("Resize")
def resize(call: Call, x: Tensor, *rest: Tensor | None) -> Tensor:
    """Separable: one axis after the other. Source: ONNX operators, Resize 19."""
    padded = (*rest, None, None, None)
    if call.version < 11:
        roi, scales, sizes = None, padded[0], None
    else:
        roi, scales, sizes = padded[:3]
    axes = [axis_of(a, x.ndim) for a in call.get("axes") or range(x.ndim)]
    targets, factors = _targets(call, x, axes, scales, sizes)
    mode = call.get("mode", "nearest")
    coordinates = (
        "asymmetric" if call.version < 11 else call.get("coordinate_transformation_mode", "half_pixel")
    )
    rounding = "floor" if call.version < 11 else call.get("nearest_mode", "round_prefer_floor")
    regions = roi.tolist() if roi is not None and roi.numel() else [0.0] * len(axes) + [1.0] * len(axes)
    outside: Tensor | None = None
    for i, (axis, size, factor) in enumerate(zip(axes, targets, factors, strict=True)):
        start, end = regions[i], regions[i + len(axes)]
        crop = coordinates == "tf_crop_and_resize"
        if size == x.shape[axis] and factor == 1 and not (crop and (start, end) != (0.0, 1.0)):
            continue
        n = x.shape[axis]
        places = _places(coordinates, size, n, factor, start, end)
        beyond = (places < 0) | (places > n - 1)
        x = _resize_axis(x, axis, places, factor, mode, rounding, call.get("cubic_coeff_a", -0.75),
                         bool(call.get("antialias", 0)), bool(call.get("exclude_outside", 0)))  # fmt: skip
        if crop:
            shape = [1] * x.ndim
            shape[axis] = size
            outside = beyond.reshape(shape) if outside is None else outside | beyond.reshape(shape)
    if outside is not None:
        x = torch.where(outside, torch.tensor(call.get("extrapolation_value", 0.0), dtype=x.dtype), x)
    return x


def _targets(
    call: Call, x: Tensor, axes: list[int], scales: Tensor | None, sizes: Tensor | None
) -> tuple[list[int], list[float]]:
    if sizes is not None and sizes.numel():
        wanted = ints(sizes) or []
        policy = call.get("keep_aspect_ratio_policy", "stretch")
        factors = [w / x.shape[a] for w, a in zip(wanted, axes, strict=True)]
        if policy != "stretch":
            one = min(factors) if policy == "not_larger" else max(factors)
            factors = [one] * len(axes)
            wanted = [math.floor(one * x.shape[a] + 0.5) for a in axes]
        return wanted, factors
    assert scales is not None
    factors = [float(s) for s in scales.tolist()]
    return [math.floor(x.shape[a] * f) for a, f in zip(axes, factors, strict=True)], factors


def _places(mode: str, size: int, n: int, factor: float, start: float, end: float) -> Tensor:
    """Where each output position lies among the `n` input positions."""
    at = torch.arange(size, dtype=torch.float64)
    match mode:
        case "asymmetric":
            return at / factor
        case "align_corners":
            return at * ((n - 1) / (n * factor - 1)) if size > 1 else at * 0
        case "pytorch_half_pixel":
            return (at + 0.5) / factor - 0.5 if size > 1 else at * 0
        case "tf_half_pixel_for_nn":
            return (at + 0.5) / factor
        case "tf_crop_and_resize":
            if size == 1:
                return at * 0 + 0.5 * (start + end) * (n - 1)
            return start * (n - 1) + at * (end - start) * (n - 1) / (size - 1)
        case "half_pixel_symmetric":
            adjust = size / (factor * n)
            return n / 2 * (1 - adjust) + (at + 0.5) / factor - 0.5
        case _:
            return (at + 0.5) / factor - 0.5


def _resize_axis(
    x: Tensor,
    axis: int,
    places: Tensor,
    factor: float,
    mode: str,
    rounding: str,
    a: float,
    antialias: bool,
    exclude: bool,
) -> Tensor:
    n = x.shape[axis]
    if mode == "nearest":
        return x.index_select(axis, _nearest(places, rounding).clamp(0, n - 1))
    # One weight per (output, tap); the taps beyond the border repeat it or are left out.
    stretch = min(factor, 1.0) if antialias else 1.0
    reach = math.ceil((1 if mode == "linear" else 2) / stretch)
    base = torch.floor(places)
    taps = base.unsqueeze(1) + torch.arange(1 - reach, reach + 1, dtype=torch.float64)
    distance = (taps - places.unsqueeze(1)).abs() * stretch
    weights = (1 - distance).clamp(min=0) if mode == "linear" else _cubic(distance, a)
    if exclude or antialias:
        weights = (
            torch.where((taps >= 0) & (taps < n), weights, 0.0)
            if exclude or mode == "linear" or antialias
            else weights
        )
        weights = weights / weights.sum(1, keepdim=True)
    index = taps.clamp(0, n - 1).to(torch.int64)
    matrix = torch.zeros(places.numel(), n, dtype=torch.float64).scatter_add(1, index, weights)
    carried = x if x.is_floating_point() else x.to(torch.float64)
    moved = carried.movedim(axis, -1) @ matrix.T.to(carried.dtype)
    result = moved.movedim(-1, axis)
    return result if x.is_floating_point() else result.round().to(x.dtype)


def _nearest(places: Tensor, rounding: str) -> Tensor:
    match rounding:
        case "floor":
            chosen = places.floor()
        case "ceil":
            chosen = places.ceil()
        case "round_prefer_ceil":
            chosen = (places + 0.5).floor()
        case _:
            chosen = (places - 0.5).ceil()
    return chosen.to(torch.int64)


def _cubic(distance: Tensor, a: float) -> Tensor:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))


@operator("GridSample")
def grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    """Samples at normalised places."""
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(
        call.get("mode", "linear"), call.get("mode", "linear")
    )
    padding, align = call.get("padding_mode", "zeros"), bool(call.get("align_corners", 0))
    return F.grid_sample(x, grid.to(x.dtype), mode, padding, align_corners=align)


@operator("AffineGrid")
def affine_grid(call: Call, theta: Tensor, size: Tensor) -> Tensor:
    """Places for GridSample."""
    return F.affine_grid(theta, ints(size) or [], align_corners=bool(call.get("align_corners", 0)))


@operator("RoiAlign")
def roi_align(call: Call, x: Tensor, regions: Tensor, batch: Tensor) -> Tensor:
    """Averages (or maxima) of bilinear samples in every cell of every region."""
    height, width = call.get("output_height", 1), call.get("output_width", 1)
    ratio, scale = call.get("sampling_ratio", 0), call.get("spatial_scale", 1.0)
    default = "half_pixel" if call.version >= 16 else "output_half_pixel"
    half = call.get("coordinate_transformation_mode", default) == "half_pixel"
    outputs = []
    for region, image in zip(regions * scale - (0.5 if half else 0.0), batch.tolist(), strict=True):
        x1, y1, x2, y2 = region.unbind()
        w, h = (x2 - x1, y2 - y1) if half else ((x2 - x1).clamp(min=1), (y2 - y1).clamp(min=1))
        ny = ratio or max(1, math.ceil(h.item() / height))
        nx = ratio or max(1, math.ceil(w.item() / width))
        ys = y1 + (torch.arange(height * ny) + 0.5) * h / (height * ny)
        xs = x1 + (torch.arange(width * nx) + 0.5) * w / (width * nx)
        values = _bilinear(x[image], ys, xs, call.get("mode", "avg") == "max")
        cells = values.reshape(x.shape[1], height, ny, width, nx, -1)
        outputs.append(
            cells.amax((2, 4, 5)) if call.get("mode", "avg") == "max" else cells.sum(-1).mean((2, 4))
        )
    return torch.stack(outputs) if outputs else x.new_zeros(0, x.shape[1], height, width)


def _bilinear(image: Tensor, ys: Tensor, xs: Tensor, apart: bool) -> Tensor:
    """(C, Y, X, 4) weighted corners of bilinear samples (their sum in one value unless `apart`)."""
    _, height, width = image.shape

    def corners(at: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inside = (at >= -1) & (at <= n)
        at = at.clamp(0, n - 1)
        low = at.floor().to(torch.int64)
        high = (low + 1).clamp(max=n - 1)
        share = at - low
        return low, high, share, inside.to(image.dtype)

    y0, y1, fy, iny = corners(ys, height)
    x0, x1, fx, inx = corners(xs, width)
    parts = []
    for (yi, wy), (xi, wx) in product(((y0, 1 - fy), (y1, fy)), ((x0, 1 - fx), (x1, fx))):
        weight = (wy * iny).reshape(-1, 1) * (wx * inx).reshape(1, -1)
        parts.append(image[:, yi][:, :, xi] * weight)
    stacked = torch.stack(parts, -1)
    return stacked if apart else stacked.sum(-1, keepdim=True)


@operator("MaxRoiPool")
def max_roi_pool(call: Call, x: Tensor, regions: Tensor) -> Tensor:
    """The largest value in every cell of every region."""
    height, width = call.attributes["pooled_shape"]
    scale = call.get("spatial_scale", 1.0)
    outputs = []
    for image, *box in regions.tolist():
        x1, y1, x2, y2 = (round(v * scale) for v in box)
        h, w = max(y2 - y1 + 1, 1) / height, max(x2 - x1 + 1, 1) / width
        out = x.new_zeros(x.shape[1], height, width)
        for i, j in product(range(height), range(width)):
            top, bottom = math.floor(i * h) + y1, math.ceil((i + 1) * h) + y1
            left, right = math.floor(j * w) + x1, math.ceil((j + 1) * w) + x1
            cell = x[int(image), :, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
            if cell.numel():
                out[:, i, j] = cell.amax((1, 2))
        outputs.append(out)
    return torch.stack(outputs)


@operator("NonMaxSuppression")
def non_max_suppression(
    call: Call,
    boxes: Tensor,
    scores: Tensor,
    most: Tensor | None = None,
    overlap: Tensor | None = None,
    least: Tensor | None = None,
) -> Tensor:
    """Indices (n, 3) of the boxes that stay: batch, class, box."""
    limit = 0 if most is None else int(most.item())
    threshold = 0.0 if overlap is None else float(overlap.item())
    floor = -math.inf if least is None else float(least.item())
    kept: list[list[int]] = []
    for image in range(scores.shape[0]):
        corners = _corners(boxes[image], call.get("center_point_box", 0))
        for category in range(scores.shape[1]):
            values = scores[image, category]
            order = torch.argsort(values, descending=True, stable=True)
            chosen: list[int] = []
            for box in order.tolist():
                if len(chosen) >= limit or (least is not None and values[box] <= floor):
                    break
                if all(_overlap(corners[box], corners[c]) <= threshold for c in chosen):
                    chosen.append(box)
            kept += [[image, category, box] for box in chosen]
    return torch.tensor(kept, dtype=torch.int64).reshape(-1, 3)


def _corners(boxes: Tensor, centred: int) -> list[Any]:
    if centred:
        x, y, w, h = boxes.unbind(-1)
        boxes = torch.stack((y - h / 2, x - w / 2, y + h / 2, x + w / 2), -1)
    low, high = torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])
    return torch.cat((low, high), 1).tolist()


def _overlap(a: list[float], b: list[float]) -> float:
    height = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    width = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = height * width
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else 0.0
