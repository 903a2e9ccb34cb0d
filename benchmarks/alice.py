"""Twelve people listening to Alice: the delay curve of each region, what the sound adds to the past, and whether chance
does as much, for each person and for all together.

    python benchmarks/alice.py [--quick] [--features audio annotations]

REAL scans of six regions (Brennan et al. 2016). ``audio`` is RE-SYNTHESISED speech at the real word
times, not the recording that was heard; ``annotations`` are the word times themselves. Settings are
those of params/alice.yaml; nothing here is tuned on what comes out. ``--quick`` takes a minute. Ends with one line of
JSON.
"""

import argparse
import json
import sys

import pandas as pd

from bold_audio import bids, group_stats, inferred, workflow
from bold_audio.params import load_params

SOURCES = {"audio": "RE-SYNTHESISED speech (audio)", "annotations": "the word times, no sound (annotations)"}


def measure(subject_label, feature_source):
    """Delay curve inside train and scores of the test part for one person."""
    params = load_params(subject_label, "alice", feature_source=feature_source)
    subject = workflow.open_subject(params)
    found = workflow.ensure_sweep(subject)
    rows = workflow.fit_linear_rows(subject, found.delay, follows=found.follows)
    table, _ = workflow.score_rows(
        subject, rows, subject.split.test, subject.run.regions, fitted_on=subject.split.train
    )
    known = {"subject": subject_label, "delay": found.delay, "identifiable": bool(found.chosen["identifiable"])}
    inference = inferred.ensure_regions(subject).assign(subject=subject_label)
    return found.table.assign(subject=subject_label), table.assign(**known), inference


def together(inference):
    """One row per region: mean out-of-fold gain, its interval, sign-flip and family-wise p, and people with p <= .05.

    2 to the power of the number of people are all sign flips there are, so the (one-sided) p are exact; family-wise is
    among the largest of the regions.
    """
    group = group_stats.region_table(inference[inference["model"] == "past_sound"], "gain").set_index("region")
    alone = inference.groupby("region")["p"].agg(people_p_05=lambda p: int((p <= 0.05).sum()), smallest_p="min")
    named = {"mean": "gain", "low": "low", "high": "high", "p": "p_sign_flip", "p_fwe": "p_fwe"}
    return group[list(named)].rename(columns=named).join(alone)


def main():
    """Measure everybody and print the averages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three people")
    parser.add_argument("--features", nargs="+", default=["audio", "annotations"], choices=["audio", "annotations"])
    options = parser.parse_args()
    people = bids.known_subjects(load_params("18", "alice"))[: 3 if options.quick else None]
    if not people:
        sys.exit("alice is not there - set data_dir in params/alice.yaml")
    result = {"people": len(people)}
    for source in options.features:
        named = SOURCES[source]
        made = zip(*(measure(p, source) for p in people), strict=True)
        curves, tables, inference = (pd.concat(parts) for parts in made)
        curve = curves.pivot_table(index="region", columns="delay", values="skill", sort=False)
        print(f"\n{named}: skill on held-out volumes of train by delay (s), mean of {len(people)} people")
        print(curve.round(4).to_string())
        one_step = tables[tables["prediction"] == "one_step"]
        r = one_step.pivot_table(index="region", columns="model", values="r_median", sort=False)
        gain = one_step[one_step["model"] == "history_sound"].groupby("region", sort=False)["skill"].mean()
        print(f"\n{named}: r on the test part, one-step, and the gain of history_sound over history, mean of people")
        shown = r[["sound", "history", "history_sound"]].assign(gain=gain)
        print(shown.round(4).to_string())
        group = together(inference)
        print(f"\n{named}: over the whole run, out of fold: gain over the past, its 95 % interval and p over people,")
        print("and in how many people the person's own p (surrogates) is at most .05, not corrected for regions")
        print(group.round(4).to_string())
        print(f"\n{named}: p of the gain among surrogates, person by person")
        print(inference.pivot_table(index="subject", columns="region", values="p", sort=False).round(3).to_string())
        sure = tables.groupby("subject")["identifiable"].first()
        print(f"\n{named}: the delay is identifiable in {sure.sum()} of {len(sure)} people")
        result[source] = {
            "identifiable": int(sure.sum()),
            "lptl_peak_s": float(curve.loc["LPTL"].idxmax()),
            "lptl_history_r": round(float(r.loc["LPTL", "history"]), 4),
            "lptl_history_sound_r": round(float(r.loc["LPTL", "history_sound"]), 4),
            "lptl_sound_r": round(float(r.loc["LPTL", "sound"]), 4),
            "lptl_gain": round(float(gain["LPTL"]), 5),
            "lptl_gain_whole_run": round(float(group.loc["LPTL", "gain"]), 5),
            "lptl_p_sign_flip": round(float(group.loc["LPTL", "p_sign_flip"]), 4),
            "lptl_p_fwe": round(float(group.loc["LPTL", "p_fwe"]), 4),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
