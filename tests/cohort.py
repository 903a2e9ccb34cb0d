"""Outputs of made-up subjects, as their runs leave them: tables, provenance and status, no scan."""

import pandas as pd

from bold_audio.files import write_json, write_table

PARAMETERS = {"dataset": "sim", "sweep_fwhm": 8.0, "delays": [2.0, 4.0, 6.0], "data_note": "SIMULATED subject"}


def write_person(folder, label, gains, *, r=0.2, delay=5.0, mean_fd=0.1, within=True, **parameters):
    """Write a finished subject into ``folder``; ``gains``: region → gain over the past. Gives its folder."""
    path = folder / f"sub-{label}"
    models = ["history_sound", *(["history_blocks_sound"] if within else [])]
    line = {"over": "the past", "partial_r": 0.1, "p": 0.01, "n_surrogates": 99, "n_voxels": 20, "n_region": 20}
    lines = [line | {"region": name, "model": model, "gain": g} for model in models for name, g in gains.items()]
    write_table(path / "inference_regions.tsv", pd.DataFrame(lines))
    scores = {"prediction": "one_step", "region": list(gains), "r_median": r}
    write_table(
        path / "out_of_fold.tsv", pd.concat([pd.DataFrame({"model": m} | scores) for m in ("sound", "history")])
    )
    known = {"delay": delay, "low": delay - 0.4, "high": delay + 0.4, "p": 0.01, "identifiable": True}
    write_table(path / "dt_regions.tsv", pd.DataFrame({"region": list(gains)} | known))
    moved = pd.DataFrame({"time": [0.0, 1.0, 2.0], "framewise_displacement": [None, mean_fd, mean_fd]})
    write_table(path / f"sub-{label}_task-film_desc-quality_timeseries.tsv", moved)
    made = {"parameters": PARAMETERS | {"subject": label} | parameters, "input_md5": {f"{label}_bold.nii.gz": "0"}}
    write_json(path / "provenance.json", dict.fromkeys(("inference_regions", "out_of_fold", "dt_sweep"), made))
    write_json(path / "status.json", {"state": "done"})
    return path
