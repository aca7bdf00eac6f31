"""`studio-graph://netron/…`: Netron's own files, our boot module and one weightless model; nothing else.

No port is opened and no request leaves: an interceptor refuses every other address, the page's
content policy says the same, and only files named here are served.
"""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QBuffer, QByteArray, QFile, QIODevice, QUrl

from studio.base.errors import StudioError
from studio.base.resources import resource

if TYPE_CHECKING:
    from PySide6.QtWebEngineCore import QWebEngineProfile

SCHEME, HOST = b"studio-graph", "netron"
START = f"{SCHEME.decode()}://{HOST}/index.html"
_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "object-src 'none'; frame-src 'none'; form-action 'none'; base-uri 'none'"
)
_KINDS = {
    ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".json": "application/json",
    ".png": "image/png", ".otf": "font/otf", ".onnx": "application/octet-stream",
}  # fmt: skip
_NETRON_FILE = re.compile(r"[A-Za-z0-9_-]+\.(js|css|json|png)")


def register_scheme() -> bool:
    """Make the scheme known to the web engine; before the application object. False without WebEngine."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        os.environ.setdefault("QTWEBENGINE_DISABLE_SANDBOX", "1")  # it refuses to run sandboxed as root
    try:
        from PySide6.QtWebEngineCore import QWebEngineUrlScheme
    except ImportError:
        return False
    if web_engine_ready():
        return True
    scheme = QWebEngineUrlScheme(QByteArray(SCHEME))
    scheme.setSyntax(QWebEngineUrlScheme.Syntax.Host)
    flags = QWebEngineUrlScheme.Flag
    scheme.setFlags(flags.SecureScheme | flags.CorsEnabled | flags.FetchApiAllowed)
    QWebEngineUrlScheme.registerScheme(scheme)
    return True


def web_engine_ready() -> bool:
    """Whether WebEngine and Netron are installed and the scheme is known."""
    if find_spec("netron") is None:
        return False
    try:
        from PySide6.QtWebEngineCore import QWebEngineUrlScheme
        from PySide6.QtWebEngineWidgets import QWebEngineView  # noqa: F401 - it may be missing alone
    except ImportError:
        return False
    return bytes(QWebEngineUrlScheme.schemeByName(QByteArray(SCHEME)).name().data()) == SCHEME


class Files:
    """What the scheme serves: an address's path to bytes."""

    def __init__(self) -> None:
        self._netron = _netron_folder()
        self._model: tuple[str, Path] | None = None

    def offer(self, model: Path, number: int) -> str:
        """Serve this model file, in place of the one before; returns its address below the start page."""
        self._model = (f"model/{number}.onnx", model)
        return self._model[0]

    def read(self, path: str) -> tuple[bytes, str] | None:
        """Content and type of a path; None where there is nothing to serve."""
        path = path.lstrip("/")
        kind = _KINDS.get(Path(path).suffix, "")
        content = self._content(path)
        return None if content is None or not kind else (content, kind)

    def _content(self, path: str) -> bytes | None:
        if path == "index.html":
            return _start_page((self._netron / "index.html").read_text(encoding="utf-8")).encode()
        if path == "studio/qwebchannel.js":
            return _qt_file(":/qtwebchannel/qwebchannel.js")
        if path in {"studio/boot.js", "studio/parts.js", "studio/studio.css"}:
            return resource(f"graph/{path.removeprefix('studio/')}").read_bytes()
        if re.fullmatch(r"studio/fonts/Inter-[A-Za-z]+\.otf", path):
            font = resource(path.removeprefix("studio/"))
            return font.read_bytes() if font.is_file() else None
        if self._model is not None and path == self._model[0]:
            return self._model[1].read_bytes() if self._model[1].is_file() else None
        if _NETRON_FILE.fullmatch(path) and (self._netron / path).is_file():
            return (self._netron / path).read_bytes()
        return None


def _netron_folder() -> Path:
    """Where Netron's files lie; its package is not imported, for that brings its server along."""
    found = find_spec("netron")
    if found is None or not found.submodule_search_locations:
        raise StudioError(
            "The graph view is not installed", "the package netron is missing", "Install netron 9.3.3."
        )
    return Path(found.submodule_search_locations[0])


def _start_page(html: str) -> str:
    """Netron's page with our policy, style and boot module in place of its own script."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    html = re.sub(r'<link rel="(shortcut )?icon"[^>]*>|<link rel="(apple|fluid)[^>]*>', "", html)
    html = re.sub(
        r'<script type="text/javascript" src="index.js"></script>',
        '<script src="studio/qwebchannel.js"></script><script type="module" src="studio/boot.js"></script>',
        html,
    )
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    html = html.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n{policy}', 1)
    return html.replace(
        "</head>", '<link rel="stylesheet" type="text/css" href="studio/studio.css">\n</head>', 1
    )


def _qt_file(name: str) -> bytes | None:
    file = QFile(name)
    if not file.open(QIODevice.OpenModeFlag.ReadOnly):
        return None
    return bytes(file.readAll().data())


def make_handler(served: Files, parent: Any) -> Any:
    """A scheme handler over `served`."""
    from PySide6.QtWebEngineCore import QWebEngineUrlRequestJob, QWebEngineUrlSchemeHandler

    class Handler(QWebEngineUrlSchemeHandler):
        def requestStarted(self, job: QWebEngineUrlRequestJob) -> None:
            url = job.requestUrl()
            found = served.read(url.path()) if url.host() == HOST and job.requestMethod() == b"GET" else None
            if found is None:
                job.fail(QWebEngineUrlRequestJob.Error.UrlNotFound)
                return
            content, kind = found
            buffer = QBuffer(job)
            buffer.setData(QByteArray(content))
            buffer.open(QIODevice.OpenModeFlag.ReadOnly)
            job.reply(QByteArray(kind.encode()), buffer)

    return Handler(parent)


def make_profile(served: Files, parent: Any) -> QWebEngineProfile:
    """A profile that keeps nothing on disk and reaches nothing but `served`."""
    from PySide6.QtWebEngineCore import (
        QWebEngineProfile,
        QWebEngineUrlRequestInfo,
        QWebEngineUrlRequestInterceptor,
    )

    class OnlyOurs(QWebEngineUrlRequestInterceptor):
        def interceptRequest(self, info: QWebEngineUrlRequestInfo) -> None:
            if not is_ours(info.requestUrl()):
                info.block(True)

    profile = QWebEngineProfile(parent)  # without a name: off the record
    profile.setUrlRequestInterceptor(OnlyOurs(profile))
    profile.installUrlSchemeHandler(QByteArray(SCHEME), make_handler(served, profile))
    return profile


def is_ours(url: QUrl) -> bool:
    """Whether an address may be asked for at all."""
    return url.scheme() == SCHEME.decode() and url.host() == HOST
