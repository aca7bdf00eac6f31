"""What the faces call: one session per window. Its `view` is one frozen record.

Everything here runs on the owner's thread; lanes (`jobs`) do the work and post what they learn
back to it. Decisions go through `_decide` (undoable), facts through `_learn` (never undone).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from studio.app import deeds, file, home
from studio.app.export import Exported
from studio.app.jobs import AskLane, Deed, DoLane, Failure, Job, Limits, LogLine, Run
from studio.app.jobs.drive import error_of
from studio.app.jobs.records import Kind
from studio.app.project import Decisions, History, Project, ScanResult, Version
from studio.app.store import Store
from studio.app.view import Live, View
from studio.base.errors import StudioError
from studio.base.resources import resource
from studio.records.base import replace
from studio.records.measure import DataSpec, Measurement
from studio.records.steps import AnySettings, Recipe, Slot
from studio.records.task import (
    Answer,
    DataPreview,
    DescribeData,
    DescribeLayer,
    Failed,
    InputSizes,
    Inspect,
    Inspected,
    Measure,
    Measured,
    News,
    Previewed,
    PreviewSteps,
    Profile,
    Profiled,
    Progressed,
    Scan,
    Scanned,
    ScannedLayer,
    Stopped,
    TimedSoFar,
    Treated,
)

LOG_LIMIT = 1000
MERGE_S = 1.0  # edits of the same thing within this time are one decision

Listener = Callable[[View, View], None]


class _Keep:
    """Says of an argument: leave this as it is."""


KEEP: Final = _Keep()


class Session:
    """Everything that faces call.

    Args:
        post: runs a call on the owner's thread (Qt: a queued signal; else `Inbox.post`).
        folder: of the studio's own files; None = the user's data folder.
        command: what to start as a worker; None = this program.
        limits: of a question to the ask lane (reading a model, planning).
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        post: Callable[[Callable[[], None]], None],
        folder: Path | None = None,
        *,
        command: list[str] | None = None,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._home = home.Home(folder)
        self._store = Store(self._home.session / "models")
        self._ask = AskLane(post, command, limits)
        scratch = self._home.session / "jobs"
        self._do = DoLane(post, scratch, self._ask, command)
        self._files = DoLane(post, scratch, None, command)
        self._listeners: list[Listener] = []
        self._unheard: list[tuple[View, View]] = []
        self._history = History()
        self._merge: tuple[str, float] = ("", 0.0)
        self._saved: object = None
        self._autosaved: Project | None = None
        self._job_ids = 0
        self._strips = 0
        self._epoch = 0  # counts opened projects; answers for an earlier one are dropped
        self._lane_of: dict[int, DoLane | str] = {}
        self.view = View()
        self.recent: tuple[str, ...] = self._home.recent()

    # ------------------------------------------------------------ listening

    def listen(self, callback: Listener) -> Callable[[], None]:
        """Call `callback(old, new)` after every change; returns what ends that."""
        self._listeners.append(callback)

        def unsubscribe() -> None:
            if callback in self._listeners:
                self._listeners.remove(callback)

        return unsubscribe

    # ------------------------------------------------------------ opening

    def open_model(self, path: str | Path) -> int:
        """Open an ONNX file as a new project; returns the job's id."""
        return self._open_model(Path(path), None, None)

    def open_sample(self) -> int:
        """Open the bundled model with its data."""
        sample = resource("sample")
        calibration = DataSpec(path=str(sample / "calibration.npz"))
        evaluation = DataSpec(path=str(sample / "evaluation.npz"))
        return self._open_model(sample / "fashion_cnn.onnx", calibration, evaluation)

    def _open_model(self, path: Path, calibration: DataSpec | None, evaluation: DataSpec | None) -> int:
        path = path.absolute()
        job = self._new_job("open", f"Open {path.name}", None)
        self._lane_of[job] = f"open:{job}"
        self._update_job(job, state="running", started=self._clock(), words="Reading the model")
        stripped = self._stripped_path()

        def then(answer: Answer) -> None:
            match answer:
                case Inspected():
                    self._end_job(job, "done", f"{len(answer.info.layers)} layers")
                    self._start_project(path, answer, calibration, evaluation)
                case Failed():
                    self._fail_job(job, answer)
                case Stopped():
                    self._end_job(job, "cancelled", "Cancelled")
                case _:
                    pass

        self._ask.ask(
            Inspect(model=str(path), stripped=stripped),
            then,
            key=f"open:{job}",
            progress=lambda news: self._on_progress(job, news),
        )
        return job

    def _start_project(
        self, path: Path, inspected: Inspected, calibration: DataSpec | None, evaluation: DataSpec | None
    ) -> None:
        info = inspected.info
        original = Version(
            id=0,
            name="Original",
            digest=info.digest,
            file=str(path),
            file_bytes=info.file_bytes,
            info=info,
            outline=inspected.outline,
            stripped=inspected.stripped,
        )
        project = Project(
            name=path.stem,
            versions=(original,),
            head=0,
            calibration=calibration,
            evaluation=evaluation,
            input_sizes=info.input_sizes,
        )
        self._set_project(project)
        self.recent = self._home.remember(path)
        self._say(f"Opened {path.name}: {len(info.layers)} layers, {info.nodes} nodes")
        self.profile(0, background=True)
        self.measure((0,), background=True)

    def open_project(self, path: str | Path) -> int:
        """Open a saved project; returns the job's id."""
        path = Path(path).absolute()
        models = self._store.folder

        def done(project: Project) -> None:
            self._set_project(project)
            self.recent = self._home.remember(path)
            self._say(f"Opened the project {path.name}")

        return self._file_deed(
            "open", f"Open {path.name}", lambda run: file.load(path, models, run.say), done
        )

    def close(self) -> None:
        """Close the project; unsaved work is gone."""
        self.cancel_all()
        (self._home.session / home.AUTOSAVE).unlink(missing_ok=True)
        self._set_project(None)

    def _set_project(self, project: Project | None, *, saved: bool = True) -> None:
        for job in self.view.jobs:
            if job.active and job.kind != "open":
                self.cancel(job.id)
        self._epoch += 1
        self._history, self._merge = History(), ("", 0.0)
        self._saved = _essence(project) if saved else _NEVER
        self._autosaved = project if saved else None
        for key in ("preview", "describe"):
            self._ask.drop(key)
        self._change(
            project=project,
            plans=(),
            planning=False,
            plan_error="",
            predicted=None,
            live=None,
            scan_live=None,
            **self._history_fields(),
        )
        if project is not None:
            self._inspect_head()
            self._describe_data()
            self._plan()

    # ------------------------------------------------------------ asking

    def describe_layer(
        self, layer: str, settings: AnySettings | None, then: Callable[[Answer], None]
    ) -> None:
        """Ask what a layer's weights look like; `then` gets LayerDetail or Failed. The newest wins."""
        project, head = self._project(), self._head()
        task = DescribeLayer(model=head.file, layer=layer, settings=settings, calibration=project.calibration)
        self._ask.ask(task, then, key="describe")

    def preview_data(self, spec: DataSpec, then: Callable[[Answer], None]) -> None:
        """Ask what the model would receive of a data set; `then` gets DataPreview or Failed."""
        folder = self._home.session / "preview"
        folder.mkdir(exist_ok=True)
        self._ask.ask(
            DescribeData(model=self._head().file, spec=spec, folder=str(folder)), then, key="preview data"
        )

    # ------------------------------------------------------------ decisions

    def set_treatment(self, layers: Iterable[str], slot: Slot, settings: AnySettings | None) -> None:
        """Stage a treatment on some layers of the head; None takes it back."""
        names = tuple(layers)
        what = settings.chip if settings is not None else f"No {slot}"
        text = f"{what} on {_count(len(names), 'layer')}"
        self._decide(text, self._project().with_treatment(names, slot, settings), f"{slot} {names}")

    def set_treatments(self, slot: Slot, groups: Iterable[tuple[Iterable[str], AnySettings | None]]) -> None:
        """Stage different settings of one slot on several groups of layers, as one decision."""
        project = self._project()
        chosen = [(tuple(layers), settings) for layers, settings in groups]
        for layers, settings in chosen:
            project = project.with_treatment(layers, slot, settings)
        chips = dict.fromkeys(settings.chip if settings else f"No {slot}" for _, settings in chosen)
        names = tuple(name for layers, _ in chosen for name in layers)
        text = f"{', '.join(chips)} on {_count(len(names), 'layer')}"
        self._decide(text, project, f"{slot} {names}")

    def clear_treatments(self, layers: Iterable[str] | None = None) -> None:
        """Take back what is staged on these layers (None: on all)."""
        self._decide("Clear treatments", self._project().without_treatments(layers))

    def go_to(self, version_id: int) -> None:
        """Move the head."""
        project = self._project()
        self._decide(f"Go to {project.version(version_id).name}", project.with_head(version_id))

    def rename(self, version_id: int, name: str) -> None:
        """Give a version another name.

        Raises:
            StudioError: the name is empty.
        """
        if not name.strip():
            raise StudioError("A version needs a name")
        version = self._project().version(version_id)
        self._decide(f"Rename {version.name}", self._with(version, name=name.strip()))

    def annotate(self, version_id: int, note: str) -> None:
        """Write a version's note."""
        version = self._project().version(version_id)
        self._decide(f"Note on {version.name}", self._with(version, note=note), f"note {version_id}")

    def remove_version(self, version_id: int) -> None:
        """Remove a version and those made from it (undo brings them back).

        Raises:
            StudioError: it is the original.
        """
        project = self._project()
        self._decide(f"Remove {project.version(version_id).name}", project.without_version(version_id))

    def set_data(
        self, *, calibration: DataSpec | _Keep | None = KEEP, evaluation: DataSpec | _Keep | None = KEEP
    ) -> None:
        """Choose the data for calibration, for evaluation, or for both."""
        project = self._project()
        if not isinstance(calibration, _Keep):
            project = replace(project, calibration=calibration, calibration_summary=None)
        if not isinstance(evaluation, _Keep):
            project = replace(project, evaluation=evaluation, evaluation_summary=None)
        self._decide("Choose data", project)

    def set_input_sizes(self, sizes: InputSizes) -> None:
        """Choose the size of every dynamic dimension."""
        self._decide("Input sizes", replace(self._project(), input_sizes=tuple(sizes)))

    def set_threads(self, threads: int) -> None:
        """Choose how many threads the runtime uses; 0 = its own choice."""
        self._decide("Threads", replace(self._project(), threads=threads))

    def set_seed(self, seed: int) -> None:
        """Choose the seed of all randomness."""
        self._decide("Seed", replace(self._project(), seed=seed))

    def undo(self) -> None:
        """Put the decisions before the last one back."""
        self._travel(self._history.undo)

    def redo(self) -> None:
        """Take the decision that was undone last again."""
        self._travel(self._history.redo)

    def _travel(self, step: Callable[[Decisions], tuple[History, Decisions]]) -> None:
        before = self.view.project
        if before is None:
            return
        self._history, decisions = step(before.decisions)
        self._merge = ("", 0.0)
        self._settle(before, before.decide(decisions))

    def _decide(self, text: str, project: Project, merge: str = "") -> None:
        before = self._project()
        if project == before:
            return
        now = self._clock()
        key, when = self._merge
        if not (merge and merge == key and now - when < MERGE_S):
            self._history = self._history.record(text, before.decisions)
        self._merge = (merge, now)
        self._settle(before, project)

    def _settle(self, before: Project, project: Project) -> None:
        """Show a project with other decisions, and ask what follows from them."""
        moved = project.head != before.head or project.input_sizes != before.input_sizes
        data = (project.calibration, project.evaluation) != (before.calibration, before.evaluation)
        staged = project.steps() != before.steps()
        fields: dict[str, Any] = {"plans": (), "predicted": None} if moved else {}
        self._change(project=project, **fields, **self._history_fields())
        if moved:
            self._inspect_head()
        if data:
            self._describe_data()
        if moved or staged or project.calibration != before.calibration:
            self._plan()

    def _history_fields(self) -> dict[str, Any]:
        past, future = self._history.past, self._history.future
        return {
            "can_undo": bool(past),
            "can_redo": bool(future),
            "undo_text": past[-1].text if past else "",
            "redo_text": future[-1].text if future else "",
        }

    # ------------------------------------------------------------ what follows from decisions

    def _plan(self) -> None:
        project, head = self._project(), self._head()
        steps = project.steps()
        self._ask.drop("preview")
        if not steps:
            self._change(plans=(), planning=False, plan_error="", predicted=None)
            return
        self._change(planning=True)

        def then(answer: Answer) -> None:
            match answer:
                case Previewed(plans=plans):
                    predicted = plans[-1].after if plans else None
                    self._change(plans=plans, planning=False, plan_error="", predicted=predicted)
                case Failed():
                    sentence = error_of(answer).sentence
                    self._change(plans=(), planning=False, plan_error=sentence, predicted=None)
                case _:
                    self._change(planning=False)

        task = PreviewSteps(
            model=head.file,
            steps=steps,
            input_sizes=project.input_sizes,
            calibration=project.calibration,
        )
        self._ask.ask(task, self._only_now(then), key="preview", light=True)

    def _inspect_head(self) -> None:
        """Inspect the head where that has not been done at the chosen sizes."""
        project, head = self._project(), self._head()
        fits = head.info is not None and (
            not project.input_sizes
            or dict(project.input_sizes).items() >= dict(head.info.input_sizes).items()
        )
        if fits and head.outline is not None and Path(head.stripped).is_file():
            return

        def then(answer: Answer) -> None:
            match answer:
                case Inspected(info=info):
                    self._learn(head.id, info=info, outline=answer.outline, stripped=answer.stripped)
                    if head.info is not None and head.digest != info.digest:
                        self._say(f"The file of {head.name} has changed since it was opened", "caution")
                case Failed():
                    self._say(error_of(answer).sentence, "error")
                case _:
                    pass

        task = Inspect(model=head.file, input_sizes=project.input_sizes, stripped=self._stripped_path())
        self._ask.ask(task, self._only_now(then), key=f"inspect {head.id}")

    def _describe_data(self) -> None:
        project = self._project()
        if project.calibration is not None and project.calibration_summary is None:
            self._summarise("calibration", project.calibration)
        if project.evaluation is not None and project.evaluation_summary is None:
            self._summarise("evaluation", project.evaluation)

    def _summarise(self, role: Literal["calibration", "evaluation"], spec: DataSpec) -> None:
        def then(answer: Answer) -> None:
            project = self._project()
            match answer:
                case DataPreview(summary=summary):
                    if role == "calibration" and project.calibration == spec:
                        self._change(project=replace(project, calibration_summary=summary))
                    elif role == "evaluation" and project.evaluation == spec:
                        self._change(project=replace(project, evaluation_summary=summary))
                case Failed():
                    self._say(f"The {role} data: {error_of(answer).sentence}", "error")
                case _:
                    pass

        task = DescribeData(model=self._head().file, spec=spec)
        self._ask.ask(task, self._only_now(then), key=f"summarise {role}")

    # ------------------------------------------------------------ deeds

    def compress(self, *, agreed: bool = False) -> int:
        """Carry out the staged treatments: a new version, measured; returns the job's id.

        Args:
            agreed: the plans' questions were answered with yes.

        Raises:
            StudioError: nothing is staged.
        """
        project, head = self._project(), self._head()
        steps = project.steps()
        if not steps:
            raise StudioError("Nothing is staged", hint="Choose layers and a treatment first.")
        recipe = Recipe(steps=steps, seed=project.seed)
        title = f"Compress {_count(len(project.staged), 'layer')}"
        known = project.find(head.id, recipe, project.calibration)
        if known is not None and Path(known.file).is_file():
            return self._compressed_before(known, title)
        job = self._new_job("compress", title, head.id)
        start_ms = (
            head.measurement.latency.median_ms if head.measurement and head.measurement.latency else None
        )
        start_bytes = head.info.cost.bytes if head.info else 0
        live = Live(job=job, total=len(project.staged), start_bytes=start_bytes, start_ms=start_ms)
        self._change(live=live)
        work = deeds.compress(project, head, recipe, self._store, agreed=agreed)

        def done(version: Version) -> None:
            self._end_job(job, "done", f"{version.name} is ready")
            self._add_version(version, project)

        self._submit(job, work, done, self._on_live)
        return job

    def _compressed_before(self, known: Version, title: str) -> int:
        job = self._new_job("compress", title, known.id)
        now = self._clock()
        self._update_job(
            job, state="done", share=1.0, started=now, ended=now, words=f"{known.name} has it already"
        )
        project = self._project()
        if any(v.id == known.id for v in project.removed):
            self._decide(f"Bring {known.name} back", _restored(project, known.id))
            project = self._project()
        self._decide(f"Go to {known.name}", _without_staged(project).with_head(known.id))
        return job

    def _add_version(self, made: Version, planned: Project) -> None:
        project = self._project()
        version = replace(made, id=project.next_id(), name=_fresh_name(project, made.name))
        added = project.with_version(version)
        if project.head == planned.head and project.treatments == planned.treatments:
            before = added.decisions
            self._history = self._history.record(f"Compress into {version.name}", before)
            self._merge = ("", 0.0)
            self._settle(added, _without_staged(added).with_head(version.id))
        else:
            self._change(project=added)
        if self.view.live is not None:
            self._change(live=replace(self.view.live, running=False))
        for note in version.notes:
            self._say(f"{version.name}: {note}")
        self.measure((version.id,))

    def measure(self, version_ids: Iterable[int], *, background: bool = False) -> int:
        """Measure versions, interleaved with the original; returns the job's id."""
        project = self._project()
        original = project.original
        chosen = [project.version(i) for i in version_ids]
        versions = [v for v in (original,) if v is not None] + [v for v in chosen if v != original]
        names = ", ".join(v.name for v in chosen) or versions[0].name
        job = self._new_job("measure", f"Measure {names}", versions[-1].id)
        task = Measure(
            models=tuple(v.file for v in versions),
            evaluation=project.evaluation,
            input_sizes=project.input_sizes,
            threads=project.threads,
        )

        def learn(measurements: Iterable[Measurement]) -> None:
            by_digest = {m.digest: m for m in measurements}
            for version in versions:
                if version.digest in by_digest:
                    self._learn(version.id, measurement=by_digest[version.digest])

        def news(_job: int, items: Sequence[News]) -> None:
            learn(item.measurement for item in items if isinstance(item, Measured))

        def done(measurements: tuple[Measurement, ...]) -> None:
            for version, measurement in zip(versions, measurements, strict=False):
                self._learn(version.id, measurement=measurement)
            self._end_job(job, "done", "Measured")

        self._submit(job, deeds.measure(task), done, news, quiet=True, background=background)
        return job

    def profile(self, version_id: int, *, background: bool = False) -> int:
        """Time every layer of a version; returns the job's id."""
        project = self._project()
        version = project.version(version_id)
        job = self._new_job("profile", f"Profile {version.name}", version_id)
        task = Profile(
            model=version.file,
            input_sizes=project.input_sizes,
            evaluation=project.evaluation,
            threads=project.threads,
        )

        def done(profiled: Profiled) -> None:
            self._learn(version_id, profile=profiled)
            self._end_job(job, "done", f"{profiled.total_ms:.2f} ms a run")

        self._submit(job, lambda run: run.task(task, Profiled), done, quiet=True, background=background)
        return job

    def scan(self, settings: AnySettings, layers: Sequence[str] = ("*",)) -> int:
        """Treat every layer alone and compare outputs; returns the job's id."""
        project, head = self._project(), self._head()
        job = self._new_job("scan", f"Scan {settings.chip}", head.id)
        task = Scan(
            model=head.file,
            settings=settings,
            layers=tuple(layers),
            calibration=project.calibration,
            input_sizes=project.input_sizes,
            seed=project.seed,
            threads=project.threads,
        )
        partial = ScanResult(settings=settings, digest=head.digest)
        self._change(scan_live=partial)

        def news(_job: int, items: Sequence[News]) -> None:
            nonlocal partial
            found = tuple(item.sensitivity for item in items if isinstance(item, ScannedLayer))
            if found:
                partial = replace(partial, layers=(*partial.layers, *found))
                self._change(scan_live=partial)

        def keep(result: ScanResult) -> None:
            scans = [s for s in self._project().version(head.id).scans if s.settings != settings]
            if result.layers:
                self._learn(head.id, scans=(*scans, result))
            self._change(scan_live=None)

        def done(scanned: Scanned) -> None:
            result = replace(partial, layers=scanned.layers, samples=scanned.samples, complete=True)
            keep(result)
            self._end_job(job, "done", f"{_count(len(scanned.layers), 'layer')} scanned")

        self._submit(job, lambda run: run.task(task, Scanned), done, news, ended=lambda: keep(partial))
        return job

    def export(
        self, version_id: int, path: str | Path, then: Callable[[Exported], None] = lambda _e: None
    ) -> int:
        """Write a version as an ONNX file and check it; returns the job's id."""
        project = self._project()
        version = project.version(version_id)
        target = Path(path).absolute()
        job = self._new_job("export", f"Export {target.name}", version_id)

        def done(exported: Exported) -> None:
            self._end_job(job, "done", exported.words[0] if exported.words else "Exported")
            self._say(f"Exported {version.name} to {target}")
            then(exported)

        self._submit(job, deeds.export(project, version, target), done)
        return job

    def cancel(self, job_id: int) -> None:
        """Ask a job to stop."""
        job = self.view.job(job_id)
        if job is None or not job.active:
            return
        lane = self._lane_of.get(job_id)
        if isinstance(lane, str):
            self._ask.drop(lane)
            self._end_job(job_id, "cancelled", "Cancelled")
        elif lane is not None and lane.cancel(job_id):
            self._end_job(job_id, "cancelled", "Cancelled before it began")
        else:
            self._update_job(job_id, state="cancelling", words="Stopping")

    def cancel_all(self) -> None:
        """Ask all jobs to stop."""
        for job in self.view.jobs:
            self.cancel(job.id)

    # ------------------------------------------------------------ saving

    def save(self, path: str | Path | None = None, then: Callable[[], None] = lambda: None) -> int:
        """Save the project where it was saved before, or at `path`; returns the job's id.

        Raises:
            StudioError: it was never saved and no path is given.
        """
        project = self._project()
        if path is None and not project.path:
            raise StudioError("The project has no place yet", hint="Choose where to save it.")
        target = Path(path or project.path).absolute()
        content = replace(project, path=str(target), name=target.stem)

        def done(_result: None) -> None:
            self._saved = _essence(content)
            self._change(project=replace(self._project(), path=content.path, name=content.name))
            (self._home.session / home.AUTOSAVE).unlink(missing_ok=True)
            self.recent = self._home.remember(target)
            self._say(f"Saved {target.name}")
            then()

        return self._file_deed(
            "save", f"Save {target.name}", lambda run: file.save(content, target, run), done
        )

    def autosave(self) -> None:
        """Keep unsaved work for after a crash; cheap when nothing has changed."""
        project = self.view.project
        if project is None or not self.view.modified or project is self._autosaved:
            return
        self._autosaved = project
        target = self._home.session / home.AUTOSAVE

        def failed(failure: Failure) -> None:
            self._say(f"Autosave failed: {failure.why or failure.what}", "caution")

        self._files_do(lambda: home.write_whole(target, file.autosaved(project)), failed)

    def recover(self) -> tuple[home.Recoverable, ...]:
        """Projects that a crash left unsaved, newest first; folders without one are cleared away."""
        return file.recoverable(self._home.orphans())

    def open_recovered(self, found: home.Recoverable) -> int:
        """Open what a crash left; returns the job's id."""
        folder = Path(found.folder)

        def done(project: Project) -> None:
            self._set_project(project, saved=False)
            self.autosave()
            self._files_do(lambda: file.discard(folder))
            self._say(f"Recovered {project.name}")

        return self._file_deed(
            "open", f"Recover {found.name}", lambda _run: file.recover(folder, self._store), done
        )

    def discard_recovered(self, found: home.Recoverable) -> None:
        """Remove what a crash left."""
        file.discard(Path(found.folder))

    def shutdown(self) -> None:
        """End all workers and remove the session's folder; unsaved work is gone."""
        self._listeners.clear()
        for lane in (self._do, self._files, self._ask):
            lane.close()
        self._home.remove_session()

    # ------------------------------------------------------------ jobs

    def _file_deed(
        self, kind: Kind, title: str, work: Callable[[Run], Any], done: Callable[[Any], None]
    ) -> int:
        job = self._new_job(kind, title, None)

        def finished(result: Any) -> None:
            self._end_job(job, "done", "Done")
            done(result)

        self._submit(job, work, finished, lane=self._files)
        return job

    def _files_do(
        self, work: Callable[[], None], failed: Callable[[Failure], None] = lambda _f: None
    ) -> None:
        """Quick work on files, in order with the others, that is no job to show."""
        self._files.submit(
            Deed(
                id=0,
                work=lambda _run: work(),
                started=lambda: None,
                news=lambda _news: None,
                done=lambda _result: None,
                failed=failed,
                cancelled=lambda: None,
            )
        )

    def _submit(
        self,
        job: int,
        work: Callable[[Run], Any],
        done: Callable[[Any], None],
        news: Callable[[int, Sequence[News]], None] = lambda _job, _news: None,
        *,
        ended: Callable[[], None] = lambda: None,
        lane: DoLane | None = None,
        quiet: bool = False,
        background: bool = False,
    ) -> None:
        """Queue a deed whose callbacks keep the job's record; `ended` is called when it did not succeed."""
        epoch = self._epoch
        lane = lane or self._do
        self._lane_of[job] = lane

        def current(call: Callable[[], None]) -> None:
            if epoch == self._epoch:
                call()

        def on_news(items: Sequence[News]) -> None:
            for item in items:
                if isinstance(item, Progressed):
                    self._on_progress(job, item)
            current(lambda: news(job, items))

        def on_done(result: Any) -> None:
            if epoch == self._epoch:
                done(result)
            else:
                self._end_job(job, "cancelled", "Its project was closed")

        def on_failed(failure: Failure) -> None:
            self._fail_job(job, failure)
            current(ended)

        def on_cancelled() -> None:
            self._end_job(job, "cancelled", "Cancelled")
            current(ended)

        lane.submit(
            Deed(
                id=job,
                work=work,
                started=lambda: self._update_job(job, state="running", started=self._clock()),
                news=on_news,
                done=on_done,
                failed=on_failed,
                cancelled=on_cancelled,
                quiet=quiet,
                background=background,
            )
        )

    def _new_job(self, kind: Kind, title: str, version: int | None) -> int:
        self._job_ids += 1
        job = Job(id=self._job_ids, title=title, kind=kind, version=version)
        self._change(jobs=(*self.view.jobs, job)[-200:])
        return job.id

    def _update_job(self, job_id: int, **changes: Any) -> None:
        job = self.view.job(job_id)
        if job is None or (changes.get("state") == "running" and job.state == "cancelling"):
            return
        updated = replace(job, **changes)
        self._change(jobs=tuple(updated if j.id == job_id else j for j in self.view.jobs))

    def _on_progress(self, job_id: int, news: Progressed) -> None:
        job = self.view.job(job_id)
        if job is None or job.state != "running" or job.started is None:
            return
        elapsed = self._clock() - job.started
        eta = elapsed / news.share - elapsed if news.share > 0.02 and elapsed > 1.0 else None
        self._update_job(job_id, share=news.share, words=news.words or job.words, eta_s=eta)

    def _on_live(self, job_id: int, items: Sequence[News]) -> None:
        live = self.view.live
        if live is None or live.job != job_id:
            return
        for item in items:
            match item:
                case Treated():
                    live = replace(
                        live,
                        total=item.total,
                        sizes=(*live.sizes, (item.done, item.bytes)),
                        words=(*live.words, (item.layer, item.words)),
                    )
                case TimedSoFar():
                    point = (item.done, item.median_ms, item.low_ms, item.high_ms)
                    live = replace(live, times=(*live.times, point))
                case _:
                    pass
        if live is not self.view.live:
            self._change(live=live)

    def _end_job(self, job_id: int, state: str, words: str) -> None:
        job = self.view.job(job_id)
        if job is None or not job.active:
            return
        share = 1.0 if state == "done" else job.share
        self._update_job(job_id, state=state, words=words, share=share, eta_s=None, ended=self._clock())
        self._lane_of.pop(job_id, None)
        if state == "cancelled":
            self._say(f"{job.title}: cancelled")
        live = self.view.live
        if live is not None and live.job == job_id and live.running:
            self._change(live=replace(live, running=False))

    def _fail_job(self, job_id: int, failure: Failure) -> None:
        sentence = error_of(failure).sentence
        self._update_job(job_id, error=failure)
        self._end_job(job_id, "failed", sentence)
        self._say(sentence, "error")

    # ------------------------------------------------------------ the view

    def _project(self) -> Project:
        if self.view.project is None:
            raise StudioError("No model is open", hint="Open one first.")
        return self.view.project

    def _head(self) -> Version:
        current = self._project().current
        if current is None:
            raise StudioError("No model is open", hint="Open one first.")
        return current

    def _with(self, version: Version, **changes: Any) -> Project:
        return self._project().with_version(replace(version, **changes))

    def _learn(self, version_id: int, **facts: Any) -> None:
        project = self._project()
        self._change(project=project.with_version(replace(project.version(version_id), **facts)))

    def _only_now(self, then: Callable[[Answer], None]) -> Callable[[Answer], None]:
        epoch = self._epoch
        return lambda answer: then(answer) if epoch == self._epoch else None

    def _say(self, text: str, level: str = "note") -> None:
        when = time.strftime("%H:%M:%S", time.localtime(self._clock()))
        line = msgspec.convert({"when": when, "text": text, "level": level}, LogLine)
        self._change(log=(*self.view.log, line)[-LOG_LIMIT:])

    def _change(self, **fields: Any) -> None:
        old = self.view
        new = replace(old, **fields)
        if "project" in fields:
            new = replace(new, modified=_essence(new.project) != self._saved)
        self.view = new
        # A listener may cause the next change: everyone hears of this one first.
        self._unheard.append((old, new))
        if len(self._unheard) > 1:
            return
        while self._unheard:
            try:
                for listener in tuple(self._listeners):
                    listener(*self._unheard[0])
            finally:
                self._unheard.pop(0)

    def _stripped_path(self) -> str:
        self._strips += 1
        return str(self._home.session / "stripped" / f"{self._strips}.onnx")


_NEVER = object()  # equals no project's essence


def _essence(project: Project | None) -> object:
    """What a save would lose without: decisions, versions, scans (not what can be measured again)."""
    if project is None:
        return None
    decisions = replace(project.decisions, head=None)
    versions = tuple((v.id, v.scans) for v in (*project.versions, *project.removed))
    return decisions, versions


def _without_staged(project: Project) -> Project:
    return project.without_treatments()


def _restored(project: Project, version_id: int) -> Project:
    decisions = project.decisions
    kept = tuple(i for i in decisions.removed if i != version_id)
    return project.decide(replace(decisions, removed=kept))


def _fresh_name(project: Project, name: str) -> str:
    taken = {v.name for v in (*project.versions, *project.removed)}
    number = 2
    fresh = name
    while fresh in taken:
        fresh, number = f"{name} ({number})", number + 1
    return fresh


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
