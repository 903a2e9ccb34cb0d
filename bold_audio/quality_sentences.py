"""Quality of a scan → plain sentences: what it means for the question."""

import numpy as np
from nibabel.affines import voxel_sizes

from bold_audio import quality

BLOCK_SD = 0.005  # standard deviation of a response of 1 % to equal blocks, as a share of the mean
MOST_LISTED = 8  # volumes named in a sentence


def about_steadiness(found):
    """What the noise of the median voxel leaves of a response of 1 %."""
    middle = np.median(found.tsnr)
    worst, best = np.percentile(found.tsnr, (10, 90))
    r, weak = (min(share * BLOCK_SD * middle, 1) for share in (1, 0.2))
    return (
        f"The median voxel's mean is {middle:.0f} times its standard deviation over time (tSNR; 80 % of the voxels lie "
        f"between {worst:.0f} and {best:.0f}). A response to the blocks of 1 % of the mean, the size expected in "
        f"auditory cortex, would make up r = {r:.2f} ({r**2:.0%} of the variance) of such a voxel's time course, one "
        f"of 0.2 % r = {weak:.2f}: no model of the sound can reach more there."
        + (" Outlier volumes were left out of this; the models are not spared them." if len(found.outliers) else "")
    )


def about_outliers(found):
    """Which volumes stand out, and what follows for train and test."""
    table = found.found
    if table.empty:
        return (
            f"None of the {len(found.volumes)} volumes stands out: none is empty, none has outliers in more than 5 % "
            "of its voxels, and none jumps away from its neighbours."
        )
    listed = [
        f"volume {k} ({row['time']:.1f} s, {row['part'] or 'in no part'}): {row['finding']}"
        for k, row in table.iterrows()
    ]
    text = f"{len(table)} of {len(found.volumes)} volumes stand{'s' if len(table) == 1 else ''} out: "
    text += "; ".join(listed[:MOST_LISTED])
    text += f"; and {len(listed) - MOST_LISTED} more, listed in the table." if len(listed) > MOST_LISTED else "."
    text += " None is mended, and none that lies in a part is left out of it."
    bad = found.volumes.loc[found.outliers, "part"]
    if (bad == "train").any():
        text += (
            " Those in train bend what is fitted there, and an outlier brighter than the rest of train sets the range "
            "by which every MSE is scaled."
        )
    if (bad == "test").any():
        text += " Those in test cost every model the same error, which hides the differences between models."
    return text


def about_motion(found, params, *, affine, blocks=None):
    """How far the head moved, and whether with the film: ``blocks`` is the boxcar's share explained, and by chance."""
    table, voxel_size = found.volumes, float(voxel_sizes(affine).mean())
    shifts = table[["trans_x", "trans_y", "trans_z"]]
    if shifts.isna().all(axis=None):
        return "No head motion was estimated: the data are not images of a head, so there is nothing to align."
    step, turn = table["framewise_displacement"], np.degrees(table[["rot_x", "rot_y", "rot_z"]])
    far = shifts.abs().max(axis=None)
    text = (
        f"The head was at most {far:.2f} mm and {turn.abs().max(axis=None):.2f}° away from where it was on average in "
        f"train; voxels are {voxel_size:.1f} mm. From one volume to the next it moved {step.mean():.3f} mm in the "
        f"mean, {step.max():.2f} mm at most (framewise displacement, Power et al. 2012)."
    )
    lost = int(shifts.isna().any(axis=1).sum())
    if lost:
        text += f" {lost} volume{'s' if lost > 1 else ''} could not be aligned."
    if blocks is not None:
        text += (
            f" In train its six parameters explain {blocks[0]:.0%} of the film's blocks 5 s later, and of the same "
            f"blocks shifted in time {blocks[1]:.0%} in the median: motion in step with the film survives every "
            "surrogate that keeps the sound, and looks like a response."
        )
    if params.realign:
        return text + " The volumes that the models get were put back in place (`realign`)."
    if far > voxel_size / 4:
        return text + " Voxels change their place by more than a quarter of their size: try `realign: true`."
    return text + " The volumes are used as they came (`realign: false`)."


def about_aliases(found, t_r, block_period):
    """Which bodily rhythms this repetition time lays on the blocks' cycle; ``block_period`` is None without blocks."""
    text = f"One volume every {t_r:g} s shows rhythms of up to {30 / t_r:.1f} per minute as they are; faster ones fold "
    strongest = [f"{1 / frequency:.3g} s" for frequency in quality.peak_frequencies(found.spectrum)]
    text += "back. "
    text += f"The global signal's strongest peaks have periods of {', '.join(strongest)}. " if strongest else ""
    if not block_period:
        return text + "The run has no blocks of speech and music in turn, so no single frequency is the sound's."
    width = 60 / (len(found.volumes) * t_r)
    text += f"The blocks repeat every {block_period:g} s. "
    for name, limits in (("heart", quality.HEART), ("breathing", quality.BREATHING)):
        rates = quality.rates_onto(1 / block_period, t_r, limits)
        if rates:
            listed = " or ".join(f"{rate:.1f}" for rate in rates)
            text += (
                f"A {name} rate of {listed} per minute (± {width:.2f}, what a run of this length can tell apart) looks "
                "like them: then neither a surrogate nor a drift filter tells it from the sound. "
            )
        else:
            text += f"No {name} rate between {limits[0]:g} and {limits[1]:g} per minute does. "
    return text.strip()


def about_cleaning(effect, params):
    """What ``realign``, ``detrend`` and ``confounds`` changed; in test, too, where they were not fitted."""
    if effect is None:
        return "Nothing was taken off the volumes: `realign`, `detrend` and `confounds` are off."
    asked = [name for name in ("realign", "detrend") if getattr(params, name)] + list(params.confounds)
    before, after = effect["before"], effect["after"]
    text = f"Asked for: {', '.join(asked)}. The median voxel's standard deviation over time, in % of its mean: "
    text += ", ".join(f"{part} {before[part]:.3f} before, {after[part]:.3f} after" for part in before) + "."
    worse = [part for part in before if after[part] > before[part]]
    if worse:
        text += f" In {' and '.join(worse)} it **rose**: what was fitted on train does not hold there."
    if effect["columns"] and np.isfinite(effect["blocks"]):
        text += f" The {effect['columns']} columns explain {effect['blocks']:.1%} of the film's blocks in train, "
        text += "and take that much of a response to them away."
    return text
