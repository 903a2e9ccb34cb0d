"""List the licences of all packages of constraints.txt as their own metadata give them, and those not installed here.

python docs/licences.py        writes docs/licences.md; ends with status 1 where a package names none
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution, distributions

from bold_audio.files import project_root, write_text

# By what a licence asks of a program that only imports the package, or runs it beside itself.
KINDS = {
    "copyleft": r"GPL|EPL|General Public",
    "copyleft by file": r"MPL|Mozilla",
    "permissive": r"MIT|BSD|Apache|ISC|PSF|Python Software|HPND|Unlicense|Zlib|CC0|Public Domain|Boost|BSL-1|Zope|ZPL",
}


def pinned():
    """Names of the packages in constraints.txt, in order."""
    text = (project_root() / "constraints.txt").read_text(encoding="utf-8")
    return list(dict.fromkeys(re.findall(r"^([A-Za-z0-9][\w.-]*)(?:\[[^]]*\])?==", text, re.MULTILINE)))


def licence_of(name):
    """Version and licence of an installed package; None where it is not installed on this machine."""
    try:
        known = distribution(name)
    except PackageNotFoundError:
        return None
    said = known.metadata.get("License-Expression") or ""
    classified = [
        line.rpartition(" :: ")[2]
        for line in known.metadata.get_all("Classifier", [])
        if line.startswith("License :: ") and line.count(" :: ") > 1
    ]
    free_text = (known.metadata.get("License") or "").strip().splitlines()
    said = said or "; ".join(classified) or (free_text[0][:80] if free_text else "") or _heading(known)
    return known.version, said


def _heading(known):
    """The first words of a licence that a package brings as a file."""
    for path in known.files or ():
        if re.search(r"licen[cs]e|copying", path.name, re.IGNORECASE):
            text = " ".join(path.read_text().split())
            return "MIT, by its text" if "Permission is hereby granted, free of charge" in text else text[:60]
    return ""


def brought_by():
    """Who requires each package: dict of str to list of str."""
    found = {}
    for known in distributions():
        for required in known.requires or ():
            if "extra ==" not in required:
                found.setdefault(_normal(re.match(r"[\w.-]+", required)[0]), []).append(known.name)
    return found


def _normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def kind_of(licence):
    """What a licence asks; where one may choose, the choice counts."""
    options = re.split(r" OR |; ", licence) if "AND" not in licence else [licence]
    found = [next((kind for kind, words in KINDS.items() if re.search(words, one)), "") for one in options]
    return "permissive" if "permissive" in found else next(filter(None, found), "")


def main():
    """Write the list."""
    rows = [(name, *known) for name in pinned() if (known := licence_of(name))]
    kinds = {name: kind_of(licence) for name, _, licence in rows}
    unknown = [name for name, kind in kinds.items() if not kind]
    counts = ", ".join(f"{sum(one == kind for one in kinds.values())} {kind}" for kind in KINDS)
    by, hard = brought_by(), [row for row in rows if kinds[row[0]] == "copyleft"]
    absent = [name for name in pinned() if name not in kinds]
    lines = ["# Licences of the packages that are installed with bold_audio", ""]
    lines += [
        f"Written by `python docs/licences.py` from the packages' own metadata: {counts}. Where a package lets one "
    ]
    lines[-1] += (
        "choose, the choice counts. Nothing of them is copied into bold_audio: pip installs each from its authors."
    )
    lines += ["", "Those that ask for more, and who brings them:", ""]
    lines += [f"- {name}: {licence}; required by {', '.join(sorted(by[name]))}" for name, _, licence in hard]
    lines += ["", f"Not installed where this was written, so not looked at: {len(absent)} packages that other systems"]
    lines[-1] += (
        f" or the CUDA builds of torch bring (NVIDIA's libraries have NVIDIA's own terms): {', '.join(absent)}."
    )
    lines += ["", "| package | version | licence | kind |", "|---|---|---|---|"]
    lines += [f"| {name} | {version} | {licence} | {kinds[name]} |" for name, version, licence in rows]
    write_text(project_root() / "docs/licences.md", "\n".join(lines) + "\n")
    if unknown:
        sys.exit(f"no licence known of: {', '.join(unknown)}")


if __name__ == "__main__":
    main()
