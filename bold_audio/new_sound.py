"""A trained model and a sound nobody was scanned with → the volumes that the sound alone would make."""

import numpy as np

from bold_audio import encoding, features, models, pairing
from bold_audio.files import DataError, ParameterError

# Standard deviations of train from its mean, and share of the volumes that are further: other ordinary films have less.
FAR, MOST_FAR = 6.0, 0.1


def predict_sound(predictor, path):
    """Predict volumes for a sound file, from the mean volume of train on: nothing measured is used.

    Parameters
    ----------
    predictor : runtimes.Predictor
        Its bundle says how features are made, delayed and scaled.
    path : path
        Sound file that begins with the run.

    Returns
    -------
    volumes : array of shape (n_volumes, n_voxels), float32
        One for each repetition time of the sound. The mean volume where the delay reaches back before its beginning.
    heard : array of bool, shape (n_volumes,)
        Volumes that the sound covers.
    warnings : list of str
        What the reader should know about the sound.

    Raises
    ------
    ParameterError
        If the model was not trained on a sound file.
    DataError
        If the sound is too short, or its rate too low for the features that the model was trained with.
    """
    facts, arrays = predictor.facts, predictor.bundle.arrays
    if facts["feature_source"] != "audio":
        raise ParameterError(f"the model hears {facts['feature_source']}, not a sound file - train it on audio")
    settings = {name: facts[name] for name in ("sample_rate", "n_mfcc", "n_fft", "hop_length")}
    sound = features.mfcc_features(path, n_bands=facts["n_bands"], **settings)
    n_volumes = int(sound.duration / facts["t_r"] + 1e-6)
    starts = np.arange(n_volumes) * facts["t_r"]
    design = pairing.make_design(sound, starts, facts["t_r"], response=facts["response"], n_lags=facts["sound_lags"])
    X = (design.at(facts["delay"]) - np.array(facts["feature_mean"])) / np.array(facts["feature_scale"])
    heard = np.isfinite(X).all(axis=1)
    if not heard.any():
        needs = f"no volume is covered by {sound.duration:.1f} s of sound at a delay of {facts['delay']:g} s"
        raise DataError(f"{needs} and a response of {facts['response']} - use a longer sound")
    warnings, strange = list(sound.warnings), int((np.abs(X[heard]) > FAR).any(axis=1).sum())
    if strange > MOST_FAR * heard.sum():
        warnings.append(
            f"{strange} of {heard.sum()} volumes have features more than {FAR:g} standard deviations from the mean of "
            "train: the model was never given such sound (silence, another loudness?)"
        )
    mean = arrays["mean_volume"]
    volumes = np.tile(mean, (n_volumes, 1))
    if facts["target"] == "whitened":
        volumes[heard] += predictor(X[heard]) - arrays["sound_level"]
        return volumes, heard, warnings
    order = max(facts["n_previous"], 1)  # before the first volume heard there were mean volumes
    padded = np.vstack([np.zeros((order, X.shape[1])), X[heard]])
    row = models.network_row(
        predictor, padded, target=facts["target"], n_voxels=len(mean), n_previous=facts["n_previous"]
    )
    rows = np.arange(order, len(padded))
    volumes[heard] = encoding.rollout(row.phi, row.drive(rows), np.tile(mean, (order, 1)), rows, row.step)
    return volumes, heard, warnings
