"""The steps of a run, in their order, and how they are named."""

import re

from bold_audio.files import ParameterError

STEPS = (
    "00_data_download",
    "01_mfcc_exploration",
    "02_baselines",
    "03_dt_sweep",
    "04_train",
    "05_export",
    "06_inference",
)
GROUP_STEP = "07_group"  # of a dataset, not of a subject


def chosen_steps(text):
    """Notebook names that ``00-06``, ``03`` or ``02,03`` mean.

    Raises
    ------
    ParameterError
        If ``text`` means no step.

    Examples
    --------
    >>> chosen_steps("02-03,06")
    ['02_baselines', '03_dt_sweep', '06_inference']
    """
    wanted = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,2})(?:-(\d{1,2}))?\s*", part)
        if not match:
            raise ParameterError(f"steps must look like 00-06 or 02,03, got {text!r}")
        part_of = range(int(match[1]), int(match[2] or match[1]) + 1)
        if not part_of:
            raise ParameterError(f"steps must run from the lower to the higher, got {text!r}")
        wanted |= set(part_of)
    steps = [name for name in STEPS if int(name[:2]) in wanted]
    if len(steps) < len(wanted):
        raise ParameterError(f"steps must be between 00 and {STEPS[-1][:2]}, got {text!r}")
    return steps
