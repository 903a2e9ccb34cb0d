"""Twelve people listening to Alice: the delay curve of each region and what the sound adds to the past.

    python benchmarks/alice.py [--quick] [--features audio annotations]

Real scans of six regions (Brennan et al. 2016). ``audio`` is RE-SYNTHESISED speech at the real word
times, not the recording that was heard; ``annotations`` are the word times themselves. Settings are
those of params/alice.yaml; nothing here is tuned on what comes out. Ends with one line of JSON.
"""

import argparse
import json
import sys

import pandas as pd

from bold_audio import bids, workflow
from bold_audio.params import load_params


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
    return found.table.assign(subject=subject_label), table.assign(**known)


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
        curves, tables = (pd.concat(parts) for parts in zip(*(measure(p, source) for p in people), strict=True))
        curve = curves.pivot_table(index="region", columns="delay", values="skill", sort=False)
        print(f"\n{source}: skill of the sound on held-out volumes of train by delay (s), mean of {len(people)} people")
        print(curve.round(4).to_string())
        one_step = tables[tables["prediction"] == "one_step"]
        r = one_step.pivot_table(index="region", columns="model", values="r_median", sort=False)
        gain = one_step[one_step["model"] == "history_sound"].groupby("region", sort=False)["skill"].mean()
        print(f"\n{source}: r on the test part, one-step, and the gain of history_sound over history, mean of people")
        shown = r[["sound", "history", "history_sound"]].assign(gain=gain)
        print(shown.round(4).to_string())
        sure = tables.groupby("subject")["identifiable"].first()
        print(f"\n{source}: the delay is identifiable in {sure.sum()} of {len(sure)} people")
        result[source] = {
            "identifiable": int(sure.sum()),
            "lptl_peak_s": float(curve.loc["LPTL"].idxmax()),
            "lptl_history_r": round(float(r.loc["LPTL", "history"]), 4),
            "lptl_history_sound_r": round(float(r.loc["LPTL", "history_sound"]), 4),
            "lptl_sound_r": round(float(r.loc["LPTL", "sound"]), 4),
            "lptl_gain": round(float(gain["LPTL"]), 5),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
