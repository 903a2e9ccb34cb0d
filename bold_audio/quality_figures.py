"""Quality of a scan → plotly figures, in the look of `style`; no files, no widgets."""

import numpy as np
from plotly.subplots import make_subplots

from bold_audio import style
from bold_audio.style import DIVERGING, PALETTE

AXES = ("x", "y", "z")
RUN_CLOCK = "Time since the run began (s)"


def plot_run(quality, *, blocks=None, note=None):
    """Draw a run at a glance on one axis of time: motion, change, outlier voxels, global signal, and all voxels.

    Parameters
    ----------
    quality : quality.ScanQuality
    blocks : DataFrame, optional
        ``onset``, ``duration`` (s) and ``trial_type`` of the film's blocks, in a strip at the top.
    note : str, optional
        What must be known of the data, such as that they are simulated.
    """
    table, times = quality.volumes, quality.volumes["time"].to_numpy()
    rows = [
        ("framewise_displacement", "FD (mm)", 1, "%{y:.3f} mm at %{x:.1f} s"),
        ("dvars", "DVARS (%)", 1, "%{y:.2f} % at %{x:.1f} s"),
        ("outlier_share", "Outlier<br>voxels (%)", 100, "%{y:.2f} % at %{x:.1f} s"),
        ("global_signal", "Global<br>signal (%)", 1, "%{y:.2f} % at %{x:.1f} s"),
    ]
    rows = [row for row in rows if table[row[0]].notna().any()]
    found = (table["finding"] != "").to_numpy()
    beside = found | np.append(False, found[:-1])
    heights = [1.0] * len(rows) + [3.0]
    small = dict(font_size=12, standoff=6)
    fig = make_subplots(len(heights), 1, shared_xaxes=True, vertical_spacing=0.025, row_heights=heights)
    for n, (column, axis, factor, hover) in enumerate(rows, 1):
        line = dict(color=PALETTE[n - 1], width=1.2)
        show = dict(mode="lines", line=line, showlegend=False, hovertemplate=hover + "<extra></extra>")
        fig.add_scatter(x=times, y=factor * table[column], row=n, col=1, **show)
        # A quiet run is not blown up to fill the panel: its noise would look like trouble. Nor does one bad volume
        # press all others flat: it leaves the panel, and a dotted line says where.
        usual = (factor * table[column])[~beside] if (~beside).any() else factor * table[column]
        low, high = np.nanmin(usual), np.nanmax(usual)
        least = {"framewise_displacement": 0.5, "outlier_share": 5.0, "dvars": 0.0, "global_signal": 0.0}[column]
        room = 0.08 * (max(high, least) - low) or 0.1
        ends = [low - room, max(high, least) + room]
        fig.update_yaxes(title=dict(text=axis, **small), range=ends, nticks=4, row=n, col=1)
    last = len(heights)
    usual = quality.carpet[:, ~found] if (~found).any() else quality.carpet
    limit = float(np.ceil(10 * np.percentile(np.abs(usual), 99)) / 10) or 1.0
    hover = "row %{y}, %{x:.1f} s: %{z:.2f} SD<extra></extra>"
    picture = dict(x=times, coloraxis="coloraxis", hovertemplate=hover)
    fig.add_heatmap(z=quality.carpet, row=last, col=1, **picture)
    words = "Voxels in groups of<br>like ones; the most like the<br>global signal at the top"
    look = dict(autorange="reversed", showticklabels=False, ticks="", showgrid=False)
    fig.update_yaxes(title=dict(text=words, **small), row=last, col=1, **look)
    scale = style.colour_scale(DIVERGING, (-limit, limit), "z-score (SD of a voxel)")
    scale["colorbar"] |= dict(len=0.4, y=0, yanchor="bottom", x=1.005)
    fig.update_layout(coloraxis=scale)
    for time in times[found]:
        fig.add_vline(x=time, line=dict(color="#D55E00", width=1, dash="dot"), row="all", col=1)
    style.figure(
        "The run at a glance",
        fig=fig,
        height=(385 if blocks is None else 455) + 80 * len(rows),
        note=note,
        top=90 if blocks is None else 160,
    )
    fig.update_xaxes(title_text=RUN_CLOCK, row=last, col=1)
    style.draw_blocks(fig, blocks, times)
    step = times[1] - times[0]
    for name in ("train", "gap", "test"):
        inside = times[table["part"] == name]
        if len(inside):
            look = dict(fillcolor=style.colour(name, 0), opacity=0.3, line_width=0, layer="below")
            for n in range(1, last):
                fig.add_vrect(x0=inside[0], x1=inside[-1] + step, row=n, col=1, **look)
            place = dict(xref="x", yref="y domain", y=1, yanchor="top", showarrow=False, font_size=11)
            fig.add_annotation(x=inside[0], text=name, xanchor="left", **place)
    return fig.update_layout(margin_r=90, margin_l=95)


def plot_motion(quality, *, note=None):
    """Draw the six parameters of head motion: shifts in mm, turns in degrees.

    Parameters
    ----------
    quality : quality.ScanQuality
    note : str, optional
    """
    table = quality.volumes
    if table["trans_x"].isna().all():
        fig = style.figure("Head motion: not estimated, these data are not images of a head", height=110, note=note)
        return fig.update_xaxes(visible=False).update_yaxes(visible=False)
    fig = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.06)
    for n, (kind, factor, unit) in enumerate((("trans", 1.0, "mm"), ("rot", 180 / np.pi, "°")), 1):
        values = factor * table[[f"{kind}_{axis}" for axis in AXES]]
        for axis, colour in zip(AXES, PALETTE, strict=False):
            name = f"along {axis}" if kind == "trans" else f"about {axis}"
            hover = f"{name}: %{{y:.3f}} {unit} at %{{x:.1f}} s<extra></extra>"
            line = dict(color=colour, width=1.5)
            group = dict(legend="legend" if n == 1 else "legend2", name=name)
            y = values[f"{kind}_{axis}"]
            fig.add_scatter(x=table["time"], y=y, mode="lines", line=line, hovertemplate=hover, row=n, col=1, **group)
        end = max(0.5, 1.1 * float(np.nanmax(np.abs(values.to_numpy()))) if values.notna().any(axis=None) else 0.5)
        fig.update_yaxes(title_text="Shift (mm)" if n == 1 else "Turn (degrees)", range=[-end, end], row=n, col=1)
    title = "Head motion against the mean of train"
    style.figure(title, fig=fig, height=430, note=note, top=60 + 22 * bool(note))
    fig.update_xaxes(title_text=RUN_CLOCK, row=2, col=1)
    return fig.update_layout(legend=dict(y=1, yanchor="top"), legend2=dict(y=0.47, yanchor="top"))


def plot_spectrum(spectrum, *, block_period=None, rates=None, note=None):
    """Draw the power of the global signal by frequency, with the blocks' frequency and where bodily rhythms show up.

    Parameters
    ----------
    spectrum : DataFrame
        ``frequency`` (Hz) and ``power`` (%² / Hz).
    block_period : float, optional
        Seconds in which the film's blocks repeat; marked.
    rates : dict of str to dict of float to float, optional
        Rhythm (such as ``heart``) → rate per minute → frequency (Hz) at which a scan shows it.
    note : str, optional
    """
    top = float(spectrum["power"].max()) or 1.0
    floor = max(float(spectrum["power"].quantile(0.02)), 1e-6 * top) / 2
    room = np.log10(top / floor)  # decades
    title = "Spectrum of the global signal"
    fig = style.figure(title, x="Frequency (Hz)", y="Power (%² / Hz)", note=note, top=60 + 22 * bool(note))
    hover = "%{y:.3g} %²/Hz at %{x:.4f} Hz<extra></extra>"
    line = dict(color=PALETTE[0], width=1.5)
    show = dict(mode="lines", line=line, name="global signal", hovertemplate=hover)
    fig.add_scatter(x=spectrum["frequency"], y=spectrum["power"], **show)
    for k, (name, found) in enumerate((rates or {}).items()):
        height = top * 10 ** (room * (0.1 + 0.14 * k))
        together = {}
        for rate, frequency in found.items():  # some repetition times fold many rates on one place
            together.setdefault(round(frequency, 4), []).append(f"{rate:g}")
        text = [", ".join(names) for names in together.values()]
        look = dict(marker=dict(symbol="line-ns-open", size=9, color=PALETTE[1 + k], line_width=2))
        hover = f"{name} of %{{text}} per minute shows up at %{{x:.4f}} Hz<extra></extra>"
        words = dict(text=text, textposition="top center", textfont=dict(size=11, color=PALETTE[1 + k]))
        label = f"where a {name} rate<br>(per minute) shows up"
        x, y = list(together), [height] * len(together)
        fig.add_scatter(x=x, y=y, mode="markers+text", name=label, hovertemplate=hover, **look, **words)
    if block_period:
        fig.add_vline(x=1 / block_period, line=dict(color="#222222", width=1.5, dash="dash"))
        place = dict(yref="paper", y=0.02, yanchor="bottom", xanchor="left", xshift=4, showarrow=False)
        text = f"the blocks' cycle of {block_period:g} s"
        fig.add_annotation(x=1 / block_period, text=text, bgcolor="rgba(255,255,255,0.8)", **place)
    ends = np.log10([floor, top]) + [0, room * (0.1 + 0.16 * len(rates or ()))]
    fig.update_yaxes(type="log", exponentformat="power", dtick=1, range=ends)
    last = float(spectrum["frequency"].iloc[-1])
    return fig.update_xaxes(range=[-0.03 * last, 1.03 * last])
