"""Figures → one sentence or two for those who cannot see them, from the figure's own numbers."""

import base64
import re

import numpy as np

MOST = 6  # traces whose numbers are told; more would not be listened to
KINDS = {"scatter": "line", "bar": "bar chart", "histogram": "histogram", "box": "box plot"}


def describe_figure(figure):
    """Say what a figure shows.

    Parameters
    ----------
    figure : dict
        ``data`` and ``layout`` as plotly writes them; numbers may be plain lists or plotly's base64.

    Returns
    -------
    str
        Title, axes, what is drawn with its extremes, and what can be moved.

    Examples
    --------
    >>> line = {"type": "scatter", "name": "r", "x": [1, 2, 3], "y": [0.5, 0.75, 0.25]}
    >>> layout = {"title": {"text": "Sound"}, "xaxis": {"title": {"text": "Δt (s)"}}}
    >>> describe_figure({"data": [line], "layout": layout})
    'Sound. Across: Δt (s). r: 0.25 to 0.75, highest at 2.'
    """
    layout, traces = figure.get("layout") or {}, figure.get("data") or []
    title = layout.get("title") or {}
    parts = [_text(title), _text((title.get("subtitle") or {}) if isinstance(title, dict) else {})]
    for letter, word in (("x", "Across"), ("y", "Upwards")):
        axes = [_text((layout.get(key) or {}).get("title") or {}) for key in sorted(layout) if _is_axis(key, letter)]
        named = list(dict.fromkeys(text for text in axes if text))
        parts.append(f"{word}: {', '.join(named)}" if named else "")
    told = [text for text in (_describe_trace(trace) for trace in traces if trace.get("type") != "heatmap") if text]
    told += _describe_pictures(traces, layout)
    parts += list(dict.fromkeys(told))[:MOST]
    if len(set(told)) > MOST:
        parts.append(f"and {len(set(told)) - MOST} more")
    for slider in layout.get("sliders") or []:
        labels = [step.get("label", "") for step in slider.get("steps") or []]
        if labels:
            prefix = ((slider.get("currentvalue") or {}).get("prefix") or "Setting").strip().rstrip(":")
            parts.append(f"A slider chooses {prefix}, {labels[0]} to {labels[-1]}")
    return " ".join(f"{part.rstrip('.')}." for part in parts if part) or "Figure without a title."


def _is_axis(key, letter):
    return re.fullmatch(rf"{letter}axis\d*", key) is not None


def _text(title):
    text = title if isinstance(title, str) else (title.get("text") or "")
    return " ".join(re.sub(r"<[^<>]*>", " ", text).split())


def _describe_trace(trace):
    """One trace in words; empty where it has no numbers to tell."""
    kind = trace.get("type", "scatter")
    values = numbers(trace.get("x" if _lies(trace) else "y"))
    if values is None or values.size == 0 or not np.isfinite(values).any():
        return ""
    finite = values[np.isfinite(values)]
    name = _text(trace.get("name") or "") or KINDS.get(kind, kind)
    span = f"{finite.min():.3g} to {finite.max():.3g}" if finite.min() < finite.max() else f"{finite.min():.3g}"
    across = trace.get("y" if _lies(trace) else "x")
    if finite.min() == finite.max() or values.ndim != 1:
        return f"{name}: {span}"
    place = _at(across, int(np.nanargmax(values)))
    return f"{name}: {span}" + (f", highest at {place}" if place else "")


def _describe_pictures(traces, layout):
    """Heatmaps in words: those that share a colour scale together, by what the scale measures."""
    groups = {}
    for trace in traces:
        if trace.get("type") == "heatmap":
            axis = trace.get("coloraxis")
            bar = (layout.get(axis) if axis else trace) or {}
            what = _text((bar.get("colorbar") or {}).get("title") or {}) or _text(trace.get("name") or "")
            groups.setdefault((axis, what), []).append(numbers(trace.get("z")))
    said = []
    for (_, what), values in groups.items():
        finite = np.concatenate([[], *(z[np.isfinite(z)] for z in values if z is not None)])
        if finite.size:
            count = "a picture" if len(values) == 1 else f"{len(values)} pictures"
            said.append(f"{count}, {what or 'without a unit'}: {finite.min():.3g} to {finite.max():.3g}")
    return said


def _lies(trace):
    return trace.get("orientation") == "h"


def _at(across, k):
    where = numbers(across)
    if where is not None and where.ndim == 1 and k < len(where):
        return f"{where[k]:g}"
    if isinstance(across, list | tuple) and k < len(across) and isinstance(across[k], str):
        return _text(across[k])
    return ""


def numbers(values):
    """Array of what plotly writes as a list or as base64; None where these are not numbers.

    Examples
    --------
    >>> numbers({"dtype": "i1", "bdata": "AQI="}), numbers([1, None])
    (array([1., 2.]), array([ 1., nan]))
    """
    if isinstance(values, dict) and "bdata" in values:
        raw = base64.b64decode(values["bdata"])
        made = np.frombuffer(raw, dtype=np.dtype(values["dtype"]).newbyteorder("<")).astype(float)
        shape = values.get("shape")
        return made.reshape([int(n) for n in str(shape).split(",")]) if shape else made
    if values is None or isinstance(values, str | dict):
        return None
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError):
        return None
