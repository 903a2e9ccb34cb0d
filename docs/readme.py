"""Draw the README's pictures and print its tables, from what the runs left in outputs/.

    bold-audio run --subject sim && python benchmarks/alice.py && python docs/readme.py

Needs Chromium for kaleido (BROWSER_PATH may name it). Prints Markdown; the pictures go to docs/.
"""

import nibabel as nib
import pandas as pd
import plotly.io as pio

from bold_audio import brain_figures, delay_figures, workflow
from bold_audio.files import project_root, read_json
from bold_audio.params import load_params

PEOPLE = 12  # of Alice; `alice.py --quick` leaves fewer
ROUND = {"mse": "{:.3g}", "r_median": "{:.3f}", "n_with_r": "{:.0f}", "r_best": "{:.3f}", "skill": "{:+.4f}"}


def markdown(table):
    """A table as Markdown."""
    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "|" + "---|" * len(table.columns)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in table.to_numpy()])


def rounded(table):
    """Numbers as text, n/a where there is none."""
    shown = table.copy()
    for name, style in ROUND.items():
        shown[name] = [style.format(v) if pd.notna(v) else "n/a" for v in table[name]]
    return shown


def save(figure, name, width=1000):
    """Write a picture of a figure into docs/."""
    path = project_root() / "docs" / name
    path.parent.mkdir(exist_ok=True)
    pio.write_image(figure, path, width=width, height=figure.layout.height, scale=1.5)
    return path


def simulated():
    """Map of the simulated subject and its score table."""
    params = load_params("sim")
    subject = workflow.open_subject(params)
    found = workflow.ensure_sweep(subject)
    r_map = nib.load(next(params.subject_path.glob("*desc-sound_stat-r_statmap.nii.gz"))).get_fdata()
    save(
        brain_figures.plot_slices(
            r_map,
            title="SIMULATED subject: r of the sound alone on the test part",
            unit="Pearson r",
            affine=subject.run.shown_affine,
            background=subject.run.mean_image,
            symmetric=True,
        ),
        "sim_map.png",
    )
    table = pd.read_csv(params.subject_path / "scores.tsv", sep="\t")
    region = read_json(params.subject_path / "summary.json")["region"]
    kept = table[(table["region"] == region) & (table["prediction"] == "one_step")]
    print(
        f"\nSIMULATED, {region}, Δt = {found.delay:g} s, one-step, {kept['n_volumes'].iloc[0]} test volumes, ", end=""
    )
    planted_too = int((found.responsive & ~subject.run.regions["silent"]).sum())
    print(
        f"{kept['n_voxels'].iloc[0]} voxels; of {found.responsive.sum()} responsive ones {planted_too} were planted\n"
    )
    print(markdown(rounded(kept)[["model", *ROUND, "reference"]].rename(columns={"reference": "over"})))
    planted = table[(table["region"] == "planted_r2_over_0.2") & (table["prediction"] == "one_step")].set_index("model")
    both, r = planted.loc["history_sound"], planted.loc["sound", "r_median"]
    print(f"\nIn the {both['n_voxels']} voxels planted with r2 >= 0.2: sound alone r {r:.2f}, ", end="")
    print(f"gain of history_sound {both['skill']:+.3f}, partial r {both['partial_r_median']:.2f}")
    silent = table[(table["region"] == "silent") & (table["prediction"] == "one_step")].set_index("model")
    print(f"In the {silent.loc['history_sound', 'n_voxels']} voxels in which nothing was planted: ", end="")
    print(f"{silent.loc['history_sound', 'skill']:+.2%}")


def alice():
    """Mean delay curve of the people whose sweeps are in outputs/alice."""
    people = sorted(load_params("18", "alice").subject_path.parent.glob("sub-*/dt_sweep.tsv"))
    if len(people) < PEOPLE:
        had = f"results of {len(people)} of the {PEOPLE} people" if people else "no results"
        print(f"\n{had} of Alice - run python benchmarks/alice.py, which needs its data (docs/data.md)")
        return
    curves = pd.concat(pd.read_csv(path, sep="\t") for path in people)
    mean = curves.groupby(["region", "delay"], sort=False, as_index=False)["skill"].mean()
    shown = mean[mean["region"].isin(["LPTL", "LIFG", "RATL"])]
    figure = delay_figures.plot_delay_curve(shown)
    figure.update_layout(title=f"Alice: re-synthesised speech, mean skill on held-out volumes of {len(people)} people")
    save(figure, "alice_delay.png")


if __name__ == "__main__":
    simulated()
    alice()
