"""Projects on disk: a folder, or one file (`.fwz`: the same folder as a zip that stores, not deflates).

    project.json                 {"program", "format", "project"}
    models/DIGEST/model.onnx     every version's model; large weights beside it in model.onnx.data

Nothing outside is named but the data sets. Saving is safe at every moment: models go in first,
each complete or not at all, then `project.json` is replaced in one step. Reading trusts nothing:
names are checked, sizes are bounded, and a damaged project is one sentence.
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from studio.app.export import copy_model
from studio.app.home import AUTOSAVE, Recoverable, write_whole
from studio.app.jobs import Run
from studio.app.project import Project, Version
from studio.app.store import MODEL, Store
from studio.base.errors import StudioError
from studio.records.base import encode, replace

FORMAT = 1
SUFFIX = ".fwz"
_PROGRAM = "featherweight"
_CONTENT = "project.json"
_CONTENT_LIMIT = 512 * 1024 * 1024
_MEMBER = re.compile(r"models/[0-9a-f]{8,128}/[A-Za-z0-9_.-]+")
# Format N -> what turns its project into one of format N + 1, for projects saved by older programs.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

Say = Callable[[float, str], None]


# ---------------------------------------------------------------- saving


def save(project: Project, target: Path, run: Run) -> None:
    """Save a project as a folder, or as one file where `target` ends in '.fwz'.

    Raises:
        StudioError: the place cannot be written, or is a folder of something else.
        Cancelled: what was there before is untouched.
    """
    try:
        if target.suffix == SUFFIX:
            _save_file(project, target, run)
        else:
            _save_folder(project, target, run)
    except OSError as error:
        raise StudioError(
            f"Cannot save {target.name}",
            error.strerror or str(error),
            "The project saved before is untouched; choose another place.",
        ) from error


def _save_folder(project: Project, target: Path, run: Run) -> None:
    if target.exists() and not target.is_dir():
        raise StudioError(f"Cannot save {target.name}", "a file of that name exists", "End the name in .fwz.")
    if target.is_dir() and any(target.iterdir()) and not (target / _CONTENT).is_file():
        raise StudioError(
            f"Cannot save into {target.name}", "the folder holds something else", "Choose an empty folder."
        )
    models = target / "models"
    models.mkdir(parents=True, exist_ok=True)
    _gather(project, models, run, 0.95)
    write_whole(target / _CONTENT, _content(_relative(project)))
    kept = {v.digest for v in project.versions}
    for folder in models.iterdir():
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def _save_file(project: Project, target: Path, run: Run) -> None:
    models = run.folder / "models"
    models.mkdir()
    _gather(project, models, run, 0.5)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("wb") as stream:
            _write_zip(stream, _content(_relative(project)), models, run)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _write_zip(stream: IO[bytes], content: bytes, models: Path, run: Run) -> None:
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_CONTENT, content)
        files = sorted(p for p in models.rglob("*") if p.is_file())
        for done, path in enumerate(files):
            run.say(0.5 + 0.5 * done / len(files), "Writing the models")
            archive.write(path, f"models/{path.relative_to(models).as_posix()}")


def _gather(project: Project, models: Path, run: Run, high: float) -> None:
    """Copy in the models that are not there yet."""
    store = Store(models)
    for done, version in enumerate(project.versions):
        share = high * done / len(project.versions)
        run.say(share, f"Saving {version.name}")
        if version.digest in store:
            continue
        partial = models / f".{version.digest}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            copy_model(run, Path(version.file), version.file_bytes, partial / MODEL)
            partial.rename(models / version.digest)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _relative(project: Project) -> Project:
    """The project as it lies on disk: paths inside it, and no files of this session."""
    versions = tuple(_at(v, f"models/{v.digest}/{MODEL}") for v in project.versions)
    shown = {v.id for v in versions}
    parked = tuple(item for item in project.parked if item[0] in shown)
    return replace(project, path="", versions=versions, removed=(), parked=parked)


def _at(version: Version, file: str) -> Version:
    """The version with its model at another place; the weightless copy is made anew when it is needed."""
    info = replace(version.info, path=file) if version.info is not None else None
    return replace(version, file=file, info=info, stripped="")


def _content(project: Project) -> bytes:
    return encode({"program": _PROGRAM, "format": FORMAT, "project": project})


# ---------------------------------------------------------------- opening


def load(path: Path, models: Path, say: Say) -> Project:
    """Open a saved project.

    Args:
        path: the folder, its project.json, or the single file.
        models: where the models of a single file are unpacked, by digest.
        say: progress.

    Raises:
        StudioError: it is no project, damaged, or of a newer program.
        Cancelled: by `say`.
    """
    if path.name == _CONTENT:
        path = path.parent
    try:
        if path.is_dir():
            content = (path / _CONTENT).read_bytes()
            root = path / "models"
        else:
            content = _unpack(path, models, say)
            root = models
    except FileNotFoundError as error:
        why = "the folder holds no project" if path.is_dir() else "it is not there, or is no project"
        raise StudioError(
            f"Cannot open {path.name}", why, "Choose an ONNX file, or a saved project."
        ) from error
    except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise StudioError(f"Cannot open {path.name}", f"the file is damaged ({error})") from error
    project = _parse(content, path.name)
    versions = tuple(_located(v, root, path.name) for v in project.versions)
    return replace(project, path=str(path), name=path.stem, versions=versions)


def _unpack(path: Path, models: Path, say: Say) -> bytes:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for done, member in enumerate(members):
            say(done / len(members), "Unpacking the models")
            if member.filename == _CONTENT:
                continue
            if not _MEMBER.fullmatch(member.filename) or member.compress_type != zipfile.ZIP_STORED:
                raise StudioError(
                    f"Cannot open {path.name}", f"it holds '{member.filename}', which no project holds"
                )
            _unpack_member(archive, member, models)
        if _CONTENT not in archive.namelist():
            raise StudioError(f"Cannot open {path.name}", "it is a zip file, but no project")
        if archive.getinfo(_CONTENT).file_size > _CONTENT_LIMIT:
            raise StudioError(f"Cannot open {path.name}", "its description is larger than any project's")
        return archive.read(_CONTENT)


def _unpack_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, models: Path) -> None:
    _, digest, name = member.filename.split("/")
    target = models / digest / name
    if target.is_file() and target.stat().st_size == member.file_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{name}.partial")
    try:
        with archive.open(member) as source, partial.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)  # checks the CRC at the end
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _parse(content: bytes, name: str) -> Project:
    try:
        envelope = msgspec.json.decode(content, type=dict[str, Any])
        if envelope.get("program") != _PROGRAM:
            raise StudioError(f"Cannot open {name}", "it is no project of this program")
        number = int(envelope.get("format", 0))
        if number > FORMAT:
            raise StudioError(
                f"Cannot open {name}", "it was saved by a newer version of this program", "Update it."
            )
        plain: dict[str, Any] = envelope["project"]
        for step in range(number, FORMAT):
            plain = MIGRATIONS[step](plain)
        return msgspec.convert(plain, Project)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise StudioError(f"Cannot open {name}", f"its description is damaged ({error})") from error


def _located(version: Version, models: Path, name: str) -> Version:
    if not re.fullmatch(r"[0-9a-f]{8,128}", version.digest):
        raise StudioError(f"Cannot open {name}", f"the version '{version.name}' has no proper digest")
    file = Store(models).path(version.digest)
    if not file.is_file() or file.is_symlink() or file.parent.is_symlink():
        raise StudioError(f"Cannot open {name}", f"the model of its version '{version.name}' is missing")
    return _at(version, str(file))


# ---------------------------------------------------------------- crashes


def autosaved(project: Project) -> bytes:
    """The bytes of an autosave: paths stay as they are in this session."""
    return _content(project)


def recoverable(orphans: tuple[Path, ...]) -> tuple[Recoverable, ...]:
    """What can be recovered of the session folders that a crash left; the others are removed."""
    return tuple(_recoverables(orphans))


def _recoverables(orphans: tuple[Path, ...]) -> Iterator[Recoverable]:
    for folder in orphans:
        saved = folder / AUTOSAVE
        try:
            project = _parse(saved.read_bytes(), folder.name)
        except (OSError, StudioError):
            discard(folder)
            continue
        yield Recoverable(
            folder=str(folder),
            name=project.name,
            when=saved.stat().st_mtime,
            versions=len(project.versions),
        )


def recover(folder: Path, store: Store) -> Project:
    """The project of a session folder that a crash left, its models taken into `store`.

    The folder stays until it is discarded, so a crash now loses nothing either.

    Raises:
        StudioError: nothing can be recovered.
    """
    try:
        project = _parse((folder / AUTOSAVE).read_bytes(), folder.name)
        versions = tuple(_taken_over(v, folder / "models", store) for v in project.versions)
    except OSError as error:
        raise StudioError("The project cannot be recovered", error.strerror or str(error)) from error
    present = tuple(v for v in versions if Path(v.file).is_file())
    if not any(v.parent is None for v in present):
        raise StudioError("The project cannot be recovered", "its original model is gone")
    ids = {v.id for v in present}
    head = project.head if project.head in ids else next(v.id for v in present if v.parent is None)
    return replace(project, versions=present, removed=(), head=head)


def _taken_over(version: Version, models: Path, store: Store) -> Version:
    source = Path(version.file)
    if models in source.parents and source.is_file():
        target = store.path(version.digest).parent
        if version.digest not in store:
            # Linked, not copied: files of a store are never changed.
            shutil.copytree(source.parent, target, copy_function=os.link)
        return _at(version, str(store.path(version.digest)))
    return replace(version, stripped="")


def discard(folder: Path) -> None:
    """Remove a session folder that a crash left."""
    shutil.rmtree(folder, ignore_errors=True)
