"""Left against right: delay and score of paired regions, beside the side that a person's language is on."""

import re

import numpy as np
import pandas as pd

from bold_audio.features import read_table

UNKNOWN = "n/a"
SIDES = ("left", "right")
# What participants.tsv of ds003688 holds: "L", "R", "bilateral", each also as "possibly ...", "inconclusive", n/a.
# participants.json lists neither "bilateral" nor "inconclusive".
WORDS = {"L": "left", "LEFT": "left", "R": "right", "RIGHT": "right", "BILATERAL": "bilateral"}


def side_of(text):
    """The side that a value of ``language_dominance`` means, and whether it was found for certain.

    Parameters
    ----------
    text : str or NaN
        As in participants.tsv.

    Returns
    -------
    side : str
        ``left``, ``right``, ``bilateral`` or ``n/a``; a value that is none of these is never guessed at.
    certain : bool
        False for "possibly ..." and where the side is not known.

    Examples
    --------
    >>> side_of("L"), side_of("possibly bilateral"), side_of("inconclusive"), side_of(float("nan"))
    (('left', True), ('bilateral', False), ('n/a', False), ('n/a', False))
    """
    text = str(text).strip()
    word = re.sub(r"^possibly\s+", "", text, flags=re.IGNORECASE)
    side = WORDS.get(word.upper(), UNKNOWN)
    return side, side != UNKNOWN and word == text


def read_participants(folder):
    """Read participants.tsv of a dataset.

    Parameters
    ----------
    folder : Path
        Root of the BIDS tree.

    Returns
    -------
    DataFrame or None
        One row per person, by label: a label such as 09 may have been written as the number 9 or without its "sub-".
        None where there is no table.

    Raises
    ------
    DataError
        If the table is there and cannot be read.
    """
    path = folder / "participants.tsv"
    if not path.is_file():
        return None
    table = read_table(path, columns=("participant_id",))
    labels = table["participant_id"].astype(str).str.strip().str.removeprefix("sub-")
    table.index = labels.where(~labels.str.fullmatch("[0-9]"), labels.str.zfill(2))
    return table[~table.index.duplicated()]


def read_dominance(params):
    """Read a person's language dominance from participants.tsv of the dataset.

    Parameters
    ----------
    params : Params

    Returns
    -------
    dict of str
        ``language_dominance`` and ``language_dominance_technique`` as they are written there; "n/a" where there is no
        table, no such column, no such person, or no value.

    Raises
    ------
    DataError
        If the table is there and cannot be read.
    """
    names = ("language_dominance", "language_dominance_technique")
    table = read_participants(params.data_path)
    mine = {} if table is None or params.subject not in table.index else table.loc[params.subject]
    return {name: UNKNOWN if pd.isna(mine.get(name)) else str(mine[name]).strip() for name in names}


def hemisphere_table(regions, scores=None, *, subject, dominance=None, score="r"):
    """Set each left region beside its right twin.

    Parameters
    ----------
    regions : DataFrame
        As in ``dt_regions.tsv``: ``region``, ``delay``, ``low``, ``high`` (s), ``identifiable``.
    scores : DataFrame, optional
        ``region`` and the column ``score``, one row per region.
    subject : str
    dominance : dict, optional
        From `read_dominance`.
    score : str
        Which column of ``scores``.

    Returns
    -------
    DataFrame
        One row per pair of regions whose names end in ``_left`` and ``_right``: ``subject``, ``region``, and for either
        side ``delay_…``, ``low_…``, ``high_…`` (s), ``identifiable_…``, ``score_…``; ``delay_right_minus_left`` (s; NaN
        unless both are identifiable), ``apart`` (whether the two intervals do not overlap), and ``score_difference``
        (right − left), ``language_side``, ``language_certain``, ``language_dominance``, ``technique``. No row where no
        region has a twin.

    Examples
    --------
    >>> known = pd.DataFrame({"region": ["a_left", "a_right"], "delay": [5.0, 6.5], "low": [4.5, 6.0],
    ...                       "high": [5.5, 7.0], "identifiable": True})
    >>> made = hemisphere_table(known, subject="09", dominance={"language_dominance": "possibly L"})
    >>> made[["region", "delay_right_minus_left", "apart", "language_side", "language_certain"]].values.tolist()
    [['a', 1.5, True, 'left', False]]
    """
    by_name = regions.drop_duplicates("region").set_index("region")
    values = None if scores is None else scores.drop_duplicates("region").set_index("region")[score]
    dominance = dominance or {}
    text = dominance.get("language_dominance", UNKNOWN)
    side, certain = side_of(text)
    rows = []
    for stem in dict.fromkeys(name.removesuffix("_left") for name in by_name.index if name.endswith("_left")):
        if f"{stem}_right" not in by_name.index:
            continue
        row = {"subject": subject, "region": stem}
        for hand in SIDES:
            mine = by_name.loc[f"{stem}_{hand}"]
            row |= {f"{what}_{hand}": float(mine[what]) for what in ("delay", "low", "high")}
            row[f"identifiable_{hand}"] = bool(mine["identifiable"])
            row[f"score_{hand}"] = np.nan if values is None else float(values.get(f"{stem}_{hand}", np.nan))
        both = row["identifiable_left"] and row["identifiable_right"]
        row["delay_right_minus_left"] = row["delay_right"] - row["delay_left"] if both else np.nan
        row["apart"] = bool(both and (row["low_right"] > row["high_left"] or row["low_left"] > row["high_right"]))
        row["score_difference"] = row["score_right"] - row["score_left"]
        row |= {"language_side": side, "language_certain": certain, "language_dominance": text}
        rows.append(row | {"technique": dominance.get("language_dominance_technique", UNKNOWN)})
    return pd.DataFrame(rows)
