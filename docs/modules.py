"""List the modules of the package by what they are for, each with the first line of its docstring.

python docs/modules.py         writes docs/modules.md; ends with status 1 where a module has no topic, or two
"""

import ast
import sys
from collections import Counter

from bold_audio.files import project_root, write_text

TOPICS = {
    "Parameters, files, errors": "schema params region_specs plain_yaml files locking provenance ending machine",
    "Getting the data": "registry access openneuro dvcrepo fetch adopt",
    "The scan": "bids images runs motion confounds data brain quality",
    "The sound": "sound features soundtrack audit",
    "Sound and scan meet in time": "pairing splits hearing prepare",
    "The SIMULATED brain": "film simulated_anatomy simulate truth",
    "The exact sweep": "gram evidence sweep voxelwise feature_grid delays",
    "Linear models and scores": "scores choices ridge space encoding models",
    "The network": "coordinates mlp training candidates tracking",
    "What the sound adds, and whether chance does as much": (
        "significance effective whitening voxel_inference nested region_inference inferred out_of_fold partition "
        "feature_sets ablations horizon learning_curve outcomes contrast controls ceiling hemispheres answer"
    ),
    "Regions by their place in the template": "atlases register anatomy",
    "Serving": "bundle served export serving server triton runtimes new_sound",
    "Running": "steps workflow done warm execution cohort cohort_table commands run __main__",
    "Several people together": "subjects group_tables group_stats group_maps group",
    "Words and figures": (
        "sentences quality_sentences control_sentences inference_sentences outcome_sentences group_sentences style "
        "alt_text figures delay_figures quality_figures anatomy_figures brain_figures inference_figures "
        "outcome_figures ceiling_figures group_figures"
    ),
    "Pages": "renderer templates thumbnails notebook_page model_card report",
    "Looking at volumes": "slices timecourse scene viewable viewed slice_viewer viewer",
}
HEAD = """# The modules

Written by `python docs/modules.py` from the first lines of the modules. Data flows from the top to the bottom; who may import whom is in `pyproject.toml`, and `lint-imports` checks it. A module that computes does not draw, and sentences and figures of results stand in modules of their own.
"""  # noqa: E501


def first_lines():
    """What each module says of itself: dict of str to str."""
    found = {}
    for path in sorted((project_root() / "bold_audio").glob("*.py")):
        if path.stem != "__init__":
            found[path.stem] = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).partition("\n")[0]
    return found


def page(said):
    """The page, as Markdown."""
    parts = [HEAD]
    for topic, names in TOPICS.items():
        rows = [
            f"| [{name}](../bold_audio/{name}.py) | {said[name].replace('|', chr(92) + '|')} |"
            for name in names.split()
        ]
        parts.append("\n".join([f"\n## {topic}\n", "| module | what it does |", "|---|---|", *rows, ""]))
    return "".join(parts)


def misplaced(said):
    """Modules that have no topic, or two, or that are not there."""
    placed = Counter(name for names in TOPICS.values() for name in names.split())
    return sorted({name for name, times in placed.items() if times > 1} | (set(said) ^ set(placed)))


def main():
    """Write the page."""
    said = first_lines()
    if wrong := misplaced(said):
        sys.exit(f"these modules must stand under one topic in docs/modules.py: {' '.join(wrong)}")
    path = project_root() / "docs/modules.md"
    write_text(path, page(said))
    print(f"{len(said)} modules in {path}")


if __name__ == "__main__":
    main()
