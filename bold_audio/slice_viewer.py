"""The slice viewer as a widget: it sends a `scene.Scene` to the browser plane by plane, and the sound once.

All that moves is painted by the browser (``viewer_js``); the kernel answers each change with one message of bytes.
"""

import threading
import time
from collections import deque
from pathlib import Path

import anywidget
import numpy as np
import traitlets

from bold_audio import figures, scene, slices, soundtrack, style, timecourse, viewable
from bold_audio.files import BoldAudioError, DataError

SCRIPTS = Path(__file__).parent / "viewer_js"
PARTS = ("planes.js", "timeline.js", "player.js", "slice_viewer.js")  # one module in the browser
KEPT_TIMINGS = 2000
# Jupyter's server leaves Nagle's algorithm on: a message smaller than a segment (64 KiB on one machine) waits up to
# 40 ms until the browser's system has acknowledged the kernel's "busy" before it. A larger one does not wait.
LOOPBACK_SEGMENT = 70_000  # bytes


class _Open:
    """``SliceViewer.open(path)``, which leaves alone the ``open()`` that ipywidgets calls on each widget it makes."""

    def __get__(self, widget, cls):
        return cls.of_image if widget is None else super(SliceViewer, widget).open


class SliceViewer(anywidget.AnyWidget):
    """Three planes of a run and of what models predict, over time, with the sound.

    Parameters
    ----------
    run : data.BoldRun or scene.Scene
    predictions : dict of (str, str) to array of shape (n, n_voxels), optional
        (model, ``one_step`` or ``open_loop``) → what it predicts; memory-mapped arrays stay on disk.
    volumes : array of int, optional
        Which volumes the predictions are for; all of the run without it.
    null : dict, optional
        As ``predictions``, by the same models fitted to a shifted sound.
    sound : path or sequence of paths, optional
        The sound file, or one for each run; one file is played anew in every run. Not with a `scene.Scene`, which does
        not know when a sound begins.
    maps : dict of str to array of shape (n_voxels,), optional
        Statistical maps, drawn over the mean volume.
    title : str, optional

    Raises
    ------
    DataError
        If predictions or maps do not fit the run, or a sound is given with a scene.

    Examples
    --------
    In a notebook, ``SliceViewer(subject.run, {("sound", "one_step"): predicted}, volumes=subject.split.test)``.
    """

    _esm = "\n".join((SCRIPTS / name).read_text(encoding="utf-8") for name in PARTS)
    _css = SCRIPTS / "slice_viewer.css"
    about = traitlets.Dict().tag(sync=True)

    def __init__(self, run, predictions=None, *, volumes=None, null=None, sound=None, maps=None, title=None, **options):
        if not isinstance(run, scene.Scene):
            given = {"volumes": volumes, "null": null, "maps": maps, "title": title}
            shown = viewable.scene_of_run(run, predictions, **given)
        else:
            shown = run
        self.scene = shown
        self.timings = deque(maxlen=KEPT_TIMINGS)  # s, each from a question to its answer on its way
        self.threads = []  # that read and compress sound
        self._sound = None
        if sound is not None:
            if shown is run:
                raise DataError("a Scene does not know when its sound begins - give SliceViewer the run, or no sound")
            paths, files = [sound] if isinstance(sound, str | Path) else list(sound), run.files
            paths = paths * len(files.parts) if len(paths) == 1 else paths
            onsets = [float(s * files.t_r) + part.onset for s, part in zip(files.starts, files.parts, strict=True)]
            self._sound = _LazySound(paths, onsets, end=float(shown.times[-1] + shown.t_r))
        self.asked = {"volume": _first_volume(shown), "voxel": list(shown.middle), "model": None, "kind": None}
        if shown.predictions:
            self.asked["model"], self.asked["kind"] = next(iter(shown.predictions))
        super().__init__(about=describe(shown, self.asked, sound=self._sound is not None), **options)
        self.on_msg(self._on_question)

    open = _Open()

    @classmethod
    def of_image(cls, path, *, cache=None, title=None):
        """Show an image on disk, 3-D or 4-D: see `viewable.scene_of_image`."""
        return cls(viewable.scene_of_image(path, cache=cache, title=title))

    @classmethod
    def of_maps(cls, maps, *, background=None, affine=None, title="Statistical maps"):
        """Show statistical maps over a mean volume: see `viewable.scene_of_maps`."""
        return cls(viewable.scene_of_maps(maps, background=background, affine=affine, title=title))

    def show(self, *, volume=None, voxel=None, place=None, model=None, kind=None):
        """Go somewhere, in every view of this widget.

        Parameters
        ----------
        volume : int, optional
        voxel : (int, int, int), optional
            Index (i, j, k) in the scan's own grid.
        place : (float, float, float), optional
            mm, instead of ``voxel``.
        model, kind : str, optional
        """
        to = {"volume": volume, "model": model, "kind": kind}
        if place is not None:
            to["voxel"] = list(self.scene.frame.nearest(place))
        elif voxel is not None:
            to["voxel"] = list(self.scene.frame.voxel_of(voxel))
        to = {name: value for name, value in to.items() if value is not None}
        self._check(self.asked | to)
        self.asked |= to
        self.about = self.about | {"start": dict(self.asked)}
        self.send({"type": "go"} | to)

    def figure(self):
        """The time course that is shown, as a plotly figure that needs no kernel."""
        facts, values = self.scene.courses(self.asked["voxel"], self.asked["kind"])
        where = ", ".join(f"{n} {v:g}" for n, v in zip(self.scene.frame.names, self._place(), strict=True))
        unit = "mm" if not self.scene.frame.reason else "(voxel)"
        series = dict(zip(facts["names"], values, strict=True))
        title = f"Voxel at {where} {unit}"
        return figures.plot_time_course(self.scene.times, series, title=title, unit=scene.RAW)

    def _place(self):
        return self.scene.frame.place(self.asked["voxel"])

    def _on_question(self, _, question, buffers):
        """Answer one message of the browser."""
        started = time.perf_counter()
        answers = {"planes": self._planes, "course": self._course, "compare": self._compare, "sound": self._play}
        kind = question.get("type")
        try:
            answers[kind](question)
        except BoldAudioError as error:
            self.send({"type": "error", "view": question.get("view"), "text": str(error)})
        except Exception as error:  # without an answer the browser would wait for ever
            text = f"{kind} failed: {type(error).__name__}: {error}"
            self.send({"type": "error", "view": question.get("view"), "text": text})
        if kind == "planes":
            self.timings.append(time.perf_counter() - started)

    def _check(self, asked):
        shape, n = self.scene.frame.shape, self.scene.n_volumes
        if not 0 <= asked["volume"] < n:
            raise DataError(f"volume must be between 0 and {n - 1}, got {asked['volume']}")
        if not all(0 <= v < size for v, size in zip(asked["voxel"], shape, strict=True)):
            raise DataError(f"voxel {tuple(asked['voxel'])} lies outside the grid {shape}")
        models = {asked.get("model")} - {model for model, _ in self.scene.predictions} - {None}
        if models or asked.get("kind") not in (None, *timecourse.KINDS):
            raise DataError(f"no prediction of {asked.get('model')}, {asked.get('kind')}")

    def _planes(self, question):
        started = time.perf_counter()
        asked = {"volume": int(question["volume"]), "voxel": [int(v) for v in question["voxel"]]}
        asked |= {"model": question.get("model"), "kind": question.get("kind")}
        self._check(asked)
        self.asked = asked
        options = {name: question[name] for name in ("quantity", "name", "threshold") if question.get(name) is not None}
        header, planes = self.scene.planes(**asked, **options)
        back = {name: question.get(name) for name in ("view", "seq", "model", "kind", "quantity")}
        padding = (
            [bytes(LOOPBACK_SEGMENT - len(planes))] if question.get("near") and len(planes) < LOOPBACK_SEGMENT else []
        )
        header["ms"] = round(1000 * (time.perf_counter() - started), 3)
        self.send({"type": "planes"} | back | header, [planes.data, *padding])

    def _course(self, question):
        facts, values = self.scene.courses(question["voxel"], question.get("kind"))
        self._send_courses("course", question, facts, values)

    def _compare(self, question):
        asked = {name: question[name] for name in ("model", "kind")}
        found, values = self.scene.compared(**asked)
        self._send_courses("compare", question, {"found": found} | asked, values)

    def _send_courses(self, kind, question, facts, values):
        values = np.ascontiguousarray(values, dtype="<f4")
        self.send({"type": kind, "view": question.get("view")} | facts, [values.data])

    def _play(self, question):
        """Read and compress the sound beside the other answers, since that takes seconds."""

        to = {"view": question.get("view")}

        def work():
            try:
                kind = soundtrack.playable(question.get("plays", []))
                track = self._sound.track
                loud = soundtrack.envelope(track, end=self._sound.end)
                self.send({"type": "loudness"} | to, [loud.data])
                about = {"start": track.onset, "duration": track.duration, "mime": kind}
                self.send({"type": "sound"} | to | about, [self._sound.packed(kind)])
            except Exception as error:  # nobody else would notice in a thread
                self.send({"type": "error", "text": f"no sound: {error}"} | to)

        if self._sound is not None:
            self.threads = [thread for thread in self.threads if thread.is_alive()]
            self.threads.append(threading.Thread(target=work, daemon=True))
            self.threads[-1].start()


class _LazySound:
    """A soundtrack, read and compressed when it is first asked for, once for all views."""

    def __init__(self, paths, onsets, *, end):
        self.paths, self.onsets, self.end = paths, onsets, end
        self._turn, self._made = threading.RLock(), {}

    @property
    def track(self):
        """Read it."""
        with self._turn:
            if "track" not in self._made:
                self._made["track"] = soundtrack.open_soundtrack(self.paths, self.onsets, end=self.end)
            return self._made["track"]

    def packed(self, kind):
        """A compressed copy: bytes."""
        with self._turn:
            if kind not in self._made:
                self._made[kind] = soundtrack.compressed(self.track, kind)
            return self._made[kind]


def _first_volume(shown):
    """Where a viewer opens: the middle of what is predicted, else of the run."""
    for prediction in shown.predictions.values():
        return int(prediction.volumes[len(prediction.volumes) // 2])
    return shown.n_volumes // 2


def describe(shown, start, *, sound):
    """What the browser has to know of a scene before the first plane: dict of what JSON can write."""
    frame = shown.frame
    names = [f"{name} ({'voxel' if frame.reason else 'mm'})" for name in frame.names]
    planes = [
        {"name": name, "cut": axis, "right": right, "up": up, "sides": "" if frame.reason else slices.SIDES[right]}
        for name, (axis, right, up) in slices.PLANES.items()
    ]
    models = dict.fromkeys(model for model, _ in shown.predictions)
    first = next(iter(shown.predictions.values()), None)
    maps = {name: dict(zip(("low", "high"), shown.limits("map", name=name), strict=True)) for name in shown.maps}
    return {
        "title": shown.title,
        "note": shown.note,
        "reason": frame.reason,
        "tilt": 0.0 if frame.reason else round(frame.tilt, 1),
        "unit": "" if frame.reason else "mm",
        "shape": list(frame.shape),
        "sizes": [round(float(s), 4) for s in frame.sizes],
        "axes": [{"name": n, "at": frame.coordinates(a).round(1).tolist()} for a, n in enumerate(names)],
        "planes": planes,
        "panels": shown.panels,
        "luts": {look: slices.lookup_table(look).tobytes().hex() for look in slices.LOOKS},
        "n_volumes": shown.n_volumes,
        "times": shown.times.round(4).tolist(),
        "t_r": shown.t_r,
        "blocks": [list(block) for block in shown.blocks],
        "predicted": [] if first is None else timecourse.stretches(first.volumes, shown.times, shown.t_r),
        "models": list(models),
        "kinds": {m: [k for k in timecourse.KINDS if (m, k) in shown.predictions] for m in models},
        "quantities": scene.QUANTITIES if shown.n_volumes > 1 else {},
        "maps": maps,
        "colours": {n: style.colour(n, i) for i, n in enumerate(["measured", "copy_previous", *models])},
        "block_colours": {kind: style.colour(kind, 0) for *_, kind in shown.blocks},
        "value_unit": scene.RAW,
        "sound": sound,
        "start": dict(start),
    }
