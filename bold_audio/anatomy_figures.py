"""Regions on the subject's own mean volume → plotly figure, three cuts through each: a bad registration is seen."""

import numpy as np
from plotly.subplots import make_subplots

from bold_audio import style
from bold_audio.brain_figures import Cut
from bold_audio.slices import PLANES
from bold_audio.style import GREYS, PALETTE


def plot_placed_regions(mean_image, affine, regions, *, brain=None, title):
    """Draw the outline of each region on the mean volume: an axial, a coronal and a sagittal cut through its middle.

    Parameters
    ----------
    mean_image : array of shape (i, j, k)
    affine : array of shape (4, 4), or None
        Grid index → mm; left and right are named by it, and by nothing else.
    regions : dict of str to bool array of shape (i, j, k)
        One row of three cuts each; the outlines of all are drawn in every cut.
    brain : bool array of shape (i, j, k), optional
        Its edge is drawn as a thin line.
    title : str

    Returns
    -------
    plotly Figure

    Raises
    ------
    ValueError
        If no region has a voxel.
    """
    shown = {name: np.asarray(roi, bool) for name, roi in regions.items() if np.any(roi)}
    if not shown:
        raise ValueError("there is no region with a voxel to draw - leave the figure out.")
    fig = make_subplots(len(shown), 3, horizontal_spacing=0.1, vertical_spacing=0.22 / len(shown))
    cuts = [Cut(mean_image.shape, affine, view) for view in PLANES]
    image = np.asarray(mean_image, np.float32)
    low, high = style.limits(image[brain] if brain is not None else image)
    tallest = []
    for row, roi in enumerate(shown.values()):
        for column, cut in enumerate(cuts):
            under, inside = cut.turn(image), cut.turn(roi)
            window = cut.box(under > 0.1 * high)
            k = _middle(inside, cut.axes[0])
            place = {"row": row + 1, "col": column + 1}
            fig.add_trace(cut.picture(under, k, window, coloraxis="coloraxis", hovertemplate=cut.hover), **place)
            if brain is not None:
                edge = cut.line(cut.turn(np.asarray(brain, np.float32)), k, window)
                fig.add_trace(edge.update(line=dict(color="#56B4E9", width=0.8)), **place)
            for n, other in enumerate(shown.values()):
                edge = cut.line(cut.turn(other.astype(np.float32)), k, window)
                fig.add_trace(edge.update(line=dict(color=PALETTE[(1, 4, 2, 3)[n % 4]], width=2)), **place)
            cut.dress(fig, 3 * row + column + 1, cut.where(k), at=place)
            tallest.append(cut.height(window, 0.27))
    names = list(shown)
    for row, name in enumerate(names):
        top = fig.layout[f"yaxis{3 * row + 1}" if row else "yaxis"].domain[1]
        look = dict(xref="paper", yref="paper", showarrow=False, xanchor="left", yanchor="bottom", yshift=18)
        colour = PALETTE[(1, 4, 2, 3)[row % 4]]
        text = f"<b>{name}</b>, {int(shown[name].sum())} voxels"
        fig.add_annotation(text=text, x=0, y=top, font_color=colour, **look)
    fig.update_layout(coloraxis=style.colour_scale(GREYS, (min(low, 0), high), "mean") | {"showscale": False})
    height = len(names) * (max(tallest) + 95) + 140
    return style.figure(title, fig=fig, height=height, top=100)


def _middle(inside, axis):
    """Index of the cut that holds most of a region."""
    return int(np.argmax(inside.sum(axis=tuple({0, 1, 2} - {axis}))))
