"""Write the tables of the inference's rates into docs/evidence.md, from bold_audio/calibration.tsv.

    python docs/rates.py

`benchmarks/significance.py --write` measures that file. A test compares the page with it.
"""

import re
from pathlib import Path

from scipy import stats

from bold_audio import inferred
from bold_audio.inference_sentences import ANY, RATES, TOGETHER, rate_of

PAGE = Path(__file__).with_name("evidence.md")
ANY_Q, LEVELS = "maps with any voxel at q <= .05", ("0.01", "0.05", "0.10")
QUESTIONS = ("one voxel", "one region, over the past", "one region, over past and blocks")


class Rates:
    """The measured figures, as text.

    Parameters
    ----------
    table : DataFrame
        From `inferred.calibration`.
    """

    def __init__(self, table):
        self.rows = {(row.kind, row.figure): row for row in table.itertuples()}

    def share(self, kind, figure):
        """A share that is a mean over people."""
        row = self.rows[kind, figure]
        return f"{row.value:.3f}".lstrip("0") + self._mark(row)

    def rate(self, kind, figure):
        """A count with its interval."""
        row = self.rows[kind, figure]
        return rate_of(round(row.value * row.n), row.n) + self._mark(row)

    def count(self, kind, figure):
        """A count alone; n/a where it was not asked."""
        row = self.rows.get((kind, figure))
        return "n/a" if row is None else f"{round(row.value * row.n)}" + self._mark(row)

    def asked(self, kind, figure):
        """What is asked, in signs."""
        said = self.rows[kind, figure].asked.replace("<=", "≤").replace(">=", "≥").replace(" 0.", " .")
        return "all" if said == "≥ 1" else said

    def n(self, kind):
        """How many scans."""
        return self.rows[kind, ANY].n

    @staticmethod
    def _mark(row):
        return "" if row.held != "no" else ", **missed**"


def targets(rates):
    """The first table: what should hold, what is asked, what was measured."""
    strong, weak = "sensitivity, voxels with r2 >= 0.2", "sensitivity, voxels with r2 0.1 to 0.2"
    strong_fwe, weak_fwe = (f"sensitivity at family-wise p <= .05, r2 {of}" for of in (">= 0.2", "0.1 to 0.2"))
    near, strict = (f"false discovery proportion, {how}" for how in ("beyond 8 mm", "strict"))
    past, within = (f"planted region, {model}: p <= .05" for model in ("past_sound", "past_blocks_sound"))
    map_s, region_s = "seconds, map", "seconds, one region, both questions"
    people = rates.rows["planted", strong].n
    shares = [
        (f"planted in full-size heads ({people} people), q ≤ .05: share found of the voxels with r2 ≥ 0.2", strong),
        ("the same of those with r2 of 0.1 to 0.2", weak),
        ("the same by family-wise p ≤ .05, r2 ≥ 0.2", strong_fwe),
        ("the same, r2 of 0.1 to 0.2", weak_fwe),
        ("share of false ones among the voxels found (q ≤ .05), but for those within 8 mm of planted ones", near),
        ("the same, counting these, too", strict),
    ]
    counted = [
        ("nothing planted: maps with any voxel at family-wise p ≤ .05", "null", ANY),
        ("the same by q ≤ .05", "null", ANY_Q),
        ("two regions that follow the blocks and not the sound within them: p ≤ .05 over the past", "blocks", past),
        ("the same over past and blocks (a false alarm)", "blocks", within),
        ("two regions that follow the film's MFCCs: p ≤ .05 over past and blocks", "sound", within),
    ]
    timed = [("seconds for the map of a full-size scan, 2 cores", map_s), ("for one region, both questions", region_s)]
    lines = [(what, rates.asked("planted", one), rates.share("planted", one)) for what, one in shares]
    lines += [(what, rates.asked(kind, one), rates.rate(kind, one)) for what, kind, one in counted]
    lines += [(what, rates.asked("speed", one), f"{rates.rows['speed', one].value:.0f}") for what, one in timed]
    return as_table(("what should hold", "asked", "measured (95 % interval)"), lines)


def nulls(rates):
    """The second table: how many scans show something where nothing is there, and what such counts stand for."""
    lines = []
    for kind, name in RATES.items():
        cells = ["; ".join(rates.count(kind, figure) for figure in (ANY, ANY_Q))]
        for question in QUESTIONS:
            three = [rates.count(kind, f"{question}: p <= {level}") for level in LEVELS]
            cells.append("n/a" if "n/a" in three else ", ".join(three))
        lines.append((name, rates.n(kind), *cells))
    all_of = [sum(int(rates.count(kind, figure)) for kind in TOGETHER) for figure in (ANY, ANY_Q)]
    n = sum(rates.n(kind) for kind in TOGETHER)
    cells = []
    for question in QUESTIONS:
        figures = [f"{question}: p <= {level}" for level in LEVELS]
        cells.append(", ".join(str(sum(int(rates.count(kind, one)) for kind in TOGETHER)) for one in figures))
    lines.append(
        (f"the {len(TOGETHER)} from white noise to a moving head together", n, f"{all_of[0]}; {all_of[1]}", *cells)
    )
    head = ("noise", "scans", "any voxel: family-wise; q", "one voxel: p ≤ .01, .05, .10")
    table = as_table((*head, "one region over the past", "over past and blocks"), lines)
    sizes = sorted({rates.n(kind) for kind in RATES if kind != "oneback"} | {n})
    return table + "\n\n" + " ".join(meaning(size) for size in sizes)


def meaning(n):
    """What the smallest counts of ``n`` say of the rate, and up to which count a rate of .05 is believed."""
    spans = "; ".join(rate_of(k, n) for k in (0, 1, 2, 3))
    limits = ", ".join(f"{stats.binom.ppf(0.975, n, float(level)):.0f}" for level in LEVELS)
    return f"{spans}; asked at p ≤ .01, .05, .10: at most {limits}."


def as_table(head, lines):
    """Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return (
        "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
        .replace("| --- ", "|---")
        .replace("---|", "---|")
    )


def written(page, table):
    """The page with both tables as they are measured."""
    rates = Rates(table)
    for name, made in (("targets", targets(rates)), ("nulls", nulls(rates))):
        begin, end = f"<!-- {name}: docs/rates.py -->", f"<!-- end of {name} -->"
        page, found = re.subn(
            f"{begin}.*?{end}", lambda _, b=begin, m=made, e=end: f"{b}\n{m}\n{e}", page, flags=re.DOTALL
        )
        if not found:
            raise SystemExit(f"{PAGE} has no place for {name} - put {begin} and {end} where it belongs")
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), inferred.calibration()), encoding="utf-8")
