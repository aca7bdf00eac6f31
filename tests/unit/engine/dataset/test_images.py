"""Image files: decoded, fitted, normalised, laid out; and turned back for the preview."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from studio.base.errors import StudioError
from studio.base.progress import Progress
from studio.engine.dataset import open_data
from studio.engine.dataset.images import prepare, restore, sensible
from studio.engine.dataset.preview import preview
from studio.records.measure import DataSpec, Preprocess
from studio.records.model import TensorInfo

PHOTO = TensorInfo(name="x", dtype="float32", shape=("N", 3, 8, 8))
PLAIN = Preprocess(height=8, width=8, resize="stretch", mean=(0.0,), std=(1.0,), scale=1.0)


def picture(path: Path, size: tuple[int, int] = (8, 8), color: tuple[int, int, int] = (10, 20, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def test_a_value_is_the_scaled_pixel_less_the_mean_over_the_deviation(tmp_path: Path) -> None:
    how = Preprocess(height=8, width=8, scale=1 / 255, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    values = prepare(picture(tmp_path / "a.png", color=(255, 0, 51)), how)
    assert values.shape == (3, 8, 8)
    assert values[:, 0, 0] == pytest.approx([(1 - 0.1) / 0.5, -0.2 / 0.25, (0.2 - 0.3) / 2.0])


def test_channel_order_and_layout(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    bgr = prepare(path, Preprocess(**{**_fields(PLAIN), "channels": "bgr"}))
    last = prepare(path, Preprocess(**{**_fields(PLAIN), "layout": "nhwc"}))
    gray = prepare(path, Preprocess(**{**_fields(PLAIN), "channels": "gray"}))
    assert bgr[:, 0, 0].tolist() == [30, 20, 10]
    assert last.shape == (8, 8, 3)
    assert gray.shape == (1, 8, 8)


def _fields(how: Preprocess) -> dict:
    return {name: getattr(how, name) for name in how.__struct_fields__}


def test_cropping_keeps_the_middle_and_padding_keeps_everything(tmp_path: Path) -> None:
    wide = Image.new("RGB", (32, 8), (0, 0, 0))
    wide.paste((255, 255, 255), (12, 0, 20, 8))
    wide.save(tmp_path / "wide.png")
    crop = Preprocess(**{**_fields(PLAIN), "resize": "crop", "crop_share": 1.0})
    pad = Preprocess(**{**_fields(PLAIN), "resize": "pad"})
    assert prepare(tmp_path / "wide.png", crop).min() == 255
    padded = prepare(tmp_path / "wide.png", pad)
    assert padded[:, 0].max() == 0  # black above
    assert padded.max() > 200


@given(st.sampled_from(["rgb", "bgr", "gray"]), st.sampled_from(["nchw", "nhwc"]), st.integers(0, 2**32 - 1))
def test_the_preview_gives_the_pixels_back(
    tmp_path_factory: pytest.TempPathFactory, channels: str, layout: str, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    path = tmp_path_factory.mktemp("p") / "a.png"
    image = Image.fromarray(pixels).convert("L" if channels == "gray" else "RGB")
    image.save(path)
    how = Preprocess(height=8, width=8, resize="stretch", channels=channels, layout=layout)  # type: ignore[arg-type]
    back = restore(prepare(path, how), how)
    assert np.array_equal(back.squeeze(), np.asarray(image))


def test_folders_are_classes_that_take_turns(tmp_path: Path) -> None:
    for name, count in (("cat", 3), ("dog", 1)):
        for number in range(count):
            picture(tmp_path / name / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    data = open_data(DataSpec(path=str(tmp_path), preprocess=PLAIN), (PHOTO,))
    labels = data.labels()
    assert labels is not None
    assert labels.tolist() == [0, 1, 0, 0]
    assert data.summary().classes == 2


def test_folders_named_by_numbers_are_those_classes(tmp_path: Path) -> None:
    for name in ("10", "9"):
        picture(tmp_path / name / "a.png")
    labels = open_data(DataSpec(path=str(tmp_path), preprocess=PLAIN), (PHOTO,)).labels()
    assert labels is not None
    assert sorted(labels.tolist()) == [9, 10]


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    data = open_data(DataSpec(path=str(tmp_path), preprocess=PLAIN), (PHOTO,))
    assert data.labels() is None
    assert next(data.feeds())["x"].shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("shape", "channels", "layout"),
    [
        (("N", 3, 32, 48), "rgb", "nchw"),
        ((1, 1, 28, 28), "gray", "nchw"),
        (("N", 32, 48, 3), "rgb", "nhwc"),
        (("N", 3, "h", "w"), "rgb", "nchw"),
    ],
)
def test_a_sensible_guess_follows_the_input(shape: tuple, channels: str, layout: str) -> None:
    how = sensible(TensorInfo(name="x", dtype="float32", shape=shape))
    assert (how.channels, how.layout) == (channels, layout)
    if isinstance(shape[1], int) and shape[1] > 3:
        assert (how.height, how.width) == shape[1:3]


def test_the_guess_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    data = open_data(DataSpec(path=str(tmp_path)), (PHOTO,))
    assert "preprocessing guessed" in data.summary().cautions[0]
    assert data.summary().spec.preprocess is not None


def test_a_preview_shows_pictures_and_statistics(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        picture(tmp_path / "set" / name / "a.png", color=(0, 128, 255))
    data = open_data(DataSpec(path=str(tmp_path / "set")), (PHOTO,))
    shown = preview(data, tmp_path / "out", Progress())
    assert shown.labels == ("0 (cat)", "1 (dog)")
    assert shown.inputs[0][:3] == ("x", "float32", "2×3×8×8")
    with Image.open(shown.images[0]) as image:
        assert image.getpixel((4, 4)) == (0, 128, 255)


# ------------------------------------------------------------------ what does not fit, in words


def test_a_picture_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(StudioError, match=r"Cannot read the picture a\.png"):
        open_data(DataSpec(path=str(tmp_path), preprocess=PLAIN), (PHOTO,))


def test_a_picture_cut_short_is_told(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    with pytest.raises(StudioError, match=r"Cannot read the picture a\.png"):
        open_data(DataSpec(path=str(tmp_path), preprocess=PLAIN), (PHOTO,))


def test_a_picture_that_unpacks_to_a_huge_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    picture(tmp_path / "a.png", (16, 16))
    with pytest.raises(StudioError, match="suspiciously large"):
        open_data(DataSpec(path=str(tmp_path), preprocess=PLAIN), (PHOTO,))


def test_postscript_is_never_handed_to_an_interpreter(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    with pytest.raises(StudioError, match="damaged or no picture"):
        open_data(DataSpec(path=str(tmp_path), preprocess=PLAIN), (PHOTO,))


def test_a_size_that_does_not_fit_says_expected_and_got(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    how = Preprocess(**{**_fields(PLAIN), "height": 9})
    with pytest.raises(StudioError, match="expected N×3×8×8, got 1×3×9×8"):
        open_data(DataSpec(path=str(tmp_path), preprocess=how), (PHOTO,))


def test_means_of_the_wrong_count_and_deviations_of_zero_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for wrong, words in ((("mean", (0.1, 0.2)), "1 or 3 values"), (("std", (0.0,)), "divides by zero")):
        how = Preprocess(**{**_fields(PLAIN), wrong[0]: wrong[1]})
        with pytest.raises(StudioError, match=words):
            open_data(DataSpec(path=str(tmp_path), preprocess=how), (PHOTO,))


def test_a_folder_without_pictures_is_told(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="there is no picture in it"):
        open_data(DataSpec(path=str(tmp_path), kind="images", preprocess=PLAIN), (PHOTO,))
