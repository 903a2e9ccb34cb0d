"""Brain maps and volumes → plotly figures, in the look of `style`; no files, no widgets.

In every function ``unit`` is what a colour shows, with its unit (``"r (no unit)"``). A brain map is a grid (i, j, k),
or one value per voxel together with ``mask``; without ``affine`` (mm; of a run, its ``shown_affine``) axes are in
voxels and no side is named; a grid with fewer than two axes longer than 1 becomes bars, one per region in ``names``.
"""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bold_audio import style
from bold_audio.slices import PLANES, make_frame
from bold_audio.style import DIVERGING, GREYS, OVERLAY, PALETTE

PANELS = {"original": (0, 0.26), "predicted": (0.29, 0.55), "predicted − original": (0.7, 0.96)}  # share of the width


# fmt: off
def plot_slices(volume, *, title, unit, affine=None, mask=None, background=None, outline=None, symmetric=False,
                limit=None, n_slices=6, view="axial", names=None, note=None):
    """Draw a row of slices; NaN and voxels outside the mask are transparent.

    Parameters
    ----------
    volume, unit, affine, mask, names
        A brain map: see the top of this module.
    background : array of shape (i, j, k), optional
        Drawn in grey under the map.
    outline : bool array of shape (i, j, k), optional
        Its edge is drawn as a line. Over a background the slices are those that it spans.
    symmetric : bool
        Red and blue around 0, for correlations and differences.
    limit : float or (float, float), optional
        End (or both ends) of the colour range; by default it holds 99 % of the values.
    n_slices : int
        At most so many, evenly spaced.
    view : {"axial", "coronal", "sagittal"}
    note : str, optional
        Written under the title.
    """
    # fmt: on
    grid = _as_grid(volume, mask)
    if sorted(grid.shape)[1] == 1:
        return plot_regions(_listed(grid, names), names, title=title, unit=unit, symmetric=symmetric)
    cut = Cut(grid.shape, affine, view)
    grid, under = cut.turn(grid), None if background is None else cut.turn(np.asarray(background, np.float32))
    edge = None if outline is None else cut.turn(np.asarray(outline, np.float32))
    inside = np.isfinite(grid)
    if edge is not None and background is None:  # air is cut off here, too
        under, inside = np.where(inside, grid, 0), edge > 0.5
    window = cut.box(inside if under is None else inside | (under > 0.2 * style.limits(under)[1]))  # air is cut off
    spanned = edge > 0.5 if edge is not None and (edge > 0.5).any() else inside
    low, high = (cut.box(spanned) if spanned.any() else window)[0]
    ks = np.unique(np.linspace(low - 0.5, high - 0.5, n_slices + 2)[1:-1].round().astype(int))
    fig = make_subplots(1, len(ks), horizontal_spacing=0.008)
    for n, k in enumerate(ks, 1):
        if background is not None:
            fig.add_trace(cut.picture(under, k, window, coloraxis="coloraxis2", hoverinfo="skip"), 1, n)
        fig.add_trace(cut.picture(grid, k, window, coloraxis="coloraxis", hovertemplate=cut.hover + unit), 1, n)
        if edge is not None:
            fig.add_trace(cut.line(edge, k, window), 1, n)
        cut.dress(fig, n, cut.where(k))
    scale = DIVERGING if symmetric else GREYS if background is None else OVERLAY
    fig.update_layout(coloraxis=style.colour_scale(scale, style.limits(grid, symmetric=symmetric, limit=limit), unit))
    if background is not None:
        fig.update_layout(coloraxis2=style.colour_scale(GREYS, style.limits(under), unit) | {"showscale": False})
    extra = 32 if note else 0
    height = 135 + cut.height(window, 1 / len(ks)) + extra
    return style.figure(title, fig=fig, height=height, note=note, top=60 + extra)


def plot_truth_prediction(true, predicted, *, title, unit, time, **options):
    """Draw one slice of one volume, measured at ``time`` (s): original, predicted, and their difference.

    ``options`` are those of `slice_player`, which says what the arrays may be; here they have no axis of time.
    """
    return slice_player(np.array([true]), np.array([predicted]), [time], title=title, unit=unit, **options)


def slice_player(
    true, predicted, times, *, title, unit, affine=None, mask=None, voxel=None, view="axial", names=None, max_volumes=40
):
    """Play one slice of the original, the prediction and their difference, which has its own range around 0.

    Parameters
    ----------
    true, predicted : arrays of shape (n_times, i, j, k), or (n_times, n_voxels) in mask order
        At most ``max_volumes`` volumes, evenly spaced, go into the page, which needs no kernel.
    times : array of shape (n_times,)
        In s.
    voxel : (int, int, int), optional
        The slice goes through it; by default through the middle of the voxels shown.
    """
    picks = np.unique(np.linspace(0, len(times) - 1, min(max_volumes, len(times))).round().astype(int))
    pairs = [(_as_grid(true[k], mask), _as_grid(predicted[k], mask)) for k in picks]
    movie, labels = [(a, b, b - a) for a, b in pairs], [f"{times[k]:.1f}" for k in picks]
    shared, own = np.array(pairs), np.array([difference for *_, difference in movie])
    fig, height = make_subplots(1, 3), 260
    if sorted(movie[0][0].shape)[1] == 1:
        pictures = [[_bars(_listed(g, names), names, unit) for g in grids] for grids in movie]
        for n, panel in enumerate(PANELS, 1):
            end = 1.05 * np.nanmax(np.abs(own if n == 3 else shared))
            fig.update_xaxes(title_text=f"{panel}<br>{unit}", range=[-end, end], zeroline=True, col=n)
            fig.update_yaxes(title_text="Region (name)" if n == 1 else "", showticklabels=n == 1, col=n)
        fig.update_yaxes(autorange="reversed")
    else:
        cut = Cut(movie[0][0].shape, affine, view)
        movie = [[cut.turn(g) for g in grids] for grids in movie]
        window = cut.box(np.isfinite(movie[0][0]))
        k = sum(window[0]) // 2
        if voxel is not None:
            marked = np.zeros(pairs[0][0].shape, bool)
            marked[tuple(voxel)] = True
            k = cut.box(cut.turn(marked))[0][0]
        pictures = [[cut.picture(g, k, window, hovertemplate=cut.hover + unit) for g in grids] for grids in movie]
        for first, second, difference in pictures:
            first.coloraxis, second.coloraxis, difference.coloraxis = "coloraxis", "coloraxis", "coloraxis2"
        for n, (panel, domain) in enumerate(PANELS.items(), 1):
            cut.dress(fig, n, panel)
            fig.update_xaxes(domain=domain, col=n)
        fig.update_layout(coloraxis=style.colour_scale(GREYS, style.limits(shared), unit, x=0.57))
        fig.update_layout(coloraxis2=style.colour_scale(DIVERGING, style.limits(own, symmetric=True), unit))
        title, height = f"{title}, {cut.where(k)}", cut.height(window, 0.26)
    fig.add_traces(pictures[0], rows=[1, 1, 1], cols=[1, 2, 3])
    if len(labels) == 1:
        return style.figure(f"{title}, {labels[0]} s", fig=fig, height=height + 150, bottom=75)
    fig.frames = [go.Frame(data=p, name=label, traces=[0, 1, 2]) for p, label in zip(pictures, labels, strict=True)]
    still = dict(frame=dict(duration=0, redraw=True), mode="immediate", transition=dict(duration=0))
    play = dict(frame=dict(duration=300, redraw=True), fromcurrent=True, transition=dict(duration=0))
    steps = [dict(label=label, method="animate", args=[[label], still]) for label in labels]
    both = (("▶ play", [None, play]), ("❚❚ pause", [[None], still]))
    buttons = [dict(label=text, method="animate", args=args) for text, args in both]
    slider = dict(steps=steps, currentvalue=dict(prefix="Time: ", suffix=" s"), y=0, pad_t=96)
    place = dict(x=1, xanchor="right", y=0, yanchor="top", pad_t=74)
    menu = dict(type="buttons", direction="left", buttons=buttons, showactive=False, **place)
    fig.update_layout(sliders=[slider], updatemenus=[menu])
    return style.figure(title, fig=fig, height=height + 266, bottom=191)


def plot_regions(values, names=None, *, title, unit, symmetric=False):
    """Draw one bar and its number per region, for data without a voxel grid; ``symmetric`` centres the axis on 0."""
    fig = style.figure(title, x=unit, y="Region (name)", height=150 + 36 * len(values))
    text = [f"{v:.3g}" if np.isfinite(v) else "n/a" for v in values]
    fig.add_trace(_bars(values, names, unit).update(text=text, textposition="outside"))
    low, high = (1.2 * v for v in style.limits(np.asarray(values, float), symmetric=symmetric))
    fig.update_xaxes(range=[min(low, 0), max(high, 0)], zeroline=True, zerolinecolor="#888888")
    return fig.update_yaxes(autorange="reversed", showgrid=False)


class Cut:
    """Slices of a grid, turned to run left to right, back to front and bottom to top where the affine is known."""

    def __init__(self, shape, affine, view):
        frame = make_frame(shape, affine)
        self.axes, self.sided, self.turn = PLANES[view], not frame.reason, frame.turn
        self.coords = [frame.coordinates(axis) for axis in range(3)]
        self.names, unit = frame.names, "mm" if self.sided else "voxel"
        self.labels = [f"{name} ({unit})" for name in self.names]
        right, up = (self.names[a] for a in self.axes[1:])
        self.hover = f"{right} %{{x:.0f}}, {up} %{{y:.0f}} {unit}<extra></extra><br>%{{z:.4g}} "

    def box(self, inside):
        """Bounds of a turned bool grid along the axes (cut, right, up)."""
        seen = [np.flatnonzero(inside.any(tuple({0, 1, 2} - {a}))) for a in self.axes]
        return [(s[0], s[-1] + 1) if len(s) else (0, inside.shape[a]) for s, a in zip(seen, self.axes, strict=True)]

    def height(self, window, share):
        """Pixels that square voxels need when a picture has this share of a page about 950 pixels wide."""
        across, up = (np.ptp(self.coords[a][slice(*w)]) + 1 for a, w in zip(self.axes[1:], window[1:], strict=True))
        return int(np.clip(800 * share * up / across, 90, 420))

    def where(self, k):
        """Where slice k lies, in words."""
        return f"{self.names[self.axes[0]]} = {round(self.coords[self.axes[0]][k])}" + (" mm" if self.sided else "")

    def picture(self, grid, k, window, **options):
        """Slice k of a turned grid, cut to the bounds that `box` gives, as a plotly trace."""
        cut, right, up = self.axes
        (x0, x1), (y0, y1) = window[1:]
        z = np.moveaxis(grid, (cut, up, right), (0, 1, 2))[k, y0:y1, x0:x1]
        return go.Heatmap(z=z, x=self.coords[right][x0:x1], y=self.coords[up][y0:y1], **options)

    def line(self, grid, k, window):
        """The edge of a region, half-way between 0 and 1."""
        cut = self.picture(grid, k, window)
        level = dict(start=0.5, end=0.5, size=1, coloring="none")
        look = dict(line=dict(color="#E69F00", width=1.5, smoothing=0), hoverinfo="skip", showlegend=False)
        return go.Contour(z=cut.z, x=cut.x, y=cut.y, contours=level, **look)

    def dress(self, fig, n, text, *, at=None):
        """Name the axes of picture n, and its sides where they are known; ``at`` is its row and column, both named."""
        _, right, up = self.axes
        x, y = (f"{a}{n}" if n > 1 else a for a in "xy")
        look = dict(constrain="domain", showgrid=False) | (at or dict(col=n))
        fig.update_xaxes(title_text=self.labels[right], nticks=4, **look)
        first = dict(title_text=self.labels[up]) if n == 1 or at else dict(showticklabels=False, ticks="")
        fig.update_yaxes(scaleanchor=x, constraintoward="top", **first, **look)
        place = dict(xref=f"{x} domain", yref=f"{y} domain", showarrow=False)
        fig.add_annotation(text=text, x=0.5, y=1, yanchor="bottom", **place)
        for side, end in zip("PA" if right == 1 else "LR", (0, 1), strict=True) if self.sided else ():
            fig.add_annotation(text=f"<b>{side}</b>", x=end, y=0, font_color="#D55E00", **place)


def _as_grid(values, mask):
    """Give a 3-D grid with NaN outside the mask."""
    values = np.asarray(values, np.float32)
    if values.ndim != 3 and mask is None:
        raise ValueError(f"a map must be a grid (i, j, k), or come with its mask; got shape {values.shape}.")
    if mask is None:
        return values
    grid = np.full(mask.shape, np.nan, np.float32)
    grid[mask] = values[mask] if values.ndim == 3 else values
    return grid


def _listed(grid, names):
    """Values of a grid that is a list of regions; one without a value keeps its place beside its name."""
    values = grid.ravel()
    return values if names is not None and len(names) == len(values) else values[np.isfinite(values)]


def _bars(values, names, unit):
    names = [f"region {k}" for k in range(1, len(values) + 1)] if names is None else list(names)
    look = dict(orientation="h", marker_color=PALETTE[0], showlegend=False)
    return go.Bar(x=values, y=names, hovertemplate=f"%{{y}}: %{{x:.4g}} {unit}<extra></extra>", **look)
