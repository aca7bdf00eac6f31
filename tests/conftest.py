"""What all tests share: a home of their own, and the folders of real models where they are at hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
if hasattr(os, "geteuid") and os.geteuid() == 0:
    os.environ.setdefault("QTWEBENGINE_DISABLE_SANDBOX", "1")

# A deadline is a timed assert: a busy machine fails it. The same draws in every run: what passed here passes there.
settings.register_profile("studio", deadline=None, derandomize=True)
settings.load_profile("studio")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def cases_dir() -> Path:
    """The folder of real evaluation models, named by FEATHERWEIGHT_CASES or beside the checkout."""
    folder = Path(os.environ.get("FEATHERWEIGHT_CASES") or ROOT.parent / "shared" / "cases")
    if not (folder / "cases.py").is_file():
        pytest.skip("the folder of real models is not here; FEATHERWEIGHT_CASES names it")
    return folder


@pytest.fixture(scope="session")
def case_models(cases_dir: Path) -> Path:
    """The folder of the cases' model files."""
    return cases_dir / "models"


@pytest.fixture(scope="session")
def sample() -> Path:
    """The folder of the bundled sample: fashion_cnn.onnx, calibration.npz, evaluation.npz."""
    return ROOT / "resources" / "sample"


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing a test does may reach the user's settings, caches or recent files."""
    home = tmp_path_factory.mktemp("home")
    for name, folder in (
        ("HOME", ""),
        ("XDG_CONFIG_HOME", "config"),
        ("XDG_DATA_HOME", "data"),
        ("XDG_CACHE_HOME", "cache"),
    ):
        (home / folder).mkdir(exist_ok=True)
        monkeypatch.setenv(name, str(home / folder))
    return home


@pytest.fixture(scope="session")
def qapp_cls() -> Callable[[list[str]], object]:
    """The application as the studio makes it: the scheme of the graph view is registered before it."""

    def make(_arguments: list[str]) -> object:
        from studio.gui.app import make_application

        return make_application()

    return make
