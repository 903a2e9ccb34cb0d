"""A small release of ds003688 for DVC: its files, clones of the project that track them, and where a token shows."""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from bold_audio import dvcrepo
from bold_audio.access import TOKEN_VARIABLE
from bold_audio.registry import ReleaseFile

ROOT = Path(__file__).parents[1]
TOKEN = "y0_planted-SECRET-token.7Qz"
BOLD = "sub-09/ses-mri3t/func/sub-09_ses-mri3t_task-film_run-1_bold.nii.gz"
T1W = "sub-09/ses-mri3t/anat/sub-09_ses-mri3t_run-1_T1w.nii.gz"
WORDS = "stimuli/annotations/sound/words.tsv"
OTHER = BOLD.replace("09", "13")
SIZES = {BOLD: 2_000_000, T1W: 2_000, WORDS: 300, OTHER: 1_000}
KINDS = {BOLD: ("09", "bold"), T1W: ("09", "T1w"), WORDS: ("n/a", "annotation"), OTHER: ("13", "bold")}
SUBJECT = [BOLD, T1W, WORDS]  # what subject 09 needs


def release_content():
    rng = np.random.default_rng(0)
    return {path: rng.bytes(size) for path, size in SIZES.items()}


def release_items(content):
    return [ReleaseFile(*KINDS[path], path, len(body), hashlib.md5(body).hexdigest()) for path, body in content.items()]


def own_surroundings(monkeypatch, folder):
    """DVC's machine-wide folders inside ``folder``, the token set, no proxy."""
    for name in ("SITE_CACHE", "GLOBAL_CONFIG", "SYSTEM_CONFIG"):
        monkeypatch.setenv(f"DVC_{name}_DIR", str(folder / "dvc" / name))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)  # nothing may leave this machine
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


def make_clone(root, remote, items):
    """A clone of the project as git has it, with a small registry."""
    for kept in ("data/.gitignore", ".dvc/.gitignore", ".dvcignore", ".gitignore"):
        (root / kept).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / kept, root / kept)
    shutil.copytree(ROOT / "params", root / "params")
    (root / "notebooks").mkdir()
    dvcrepo.track(root, remote, items)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "all")
    return root


def store(folder, items, content):
    """Put the objects of all files below ``folder``, as `publish` does."""
    for item in items:
        stored = folder / "files/md5" / item.md5[:2] / item.md5[2:]
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_bytes(content[item.path])


def git(root, *arguments):
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def data(root):
    return root / "data" / "ds003688"


def fill(root, content, paths=tuple(SIZES)):
    for path in paths:
        (data(root) / path).parent.mkdir(parents=True, exist_ok=True)
        (data(root) / path).write_bytes(content[path])


def nothing_but(root, paths):
    """Assert that no other files lie in the dataset than these, whole, and the facts that `fetch` writes."""
    there = {p.relative_to(data(root)).as_posix() for p in data(root).rglob("*") if p.is_file()}
    facts = {p for p in there if p.endswith((".json", "_events.tsv"))}
    assert there - facts == set(paths)


def pattern(items, path):
    (item,) = (item for item in items if item.path == path)
    return f"GET .*/{item.md5[2:]}"


def make_certificate(path):
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(*form) + made.sign(key, hashes.SHA256()).public_bytes(form[0]))


CHILD = """
import sys
from pathlib import Path
from bold_audio import fetch, registry
from bold_audio.access import Remote
root, url, *rows = sys.argv[1:]
items = [registry.ReleaseFile(*row.split("|")[:3], int(row.split("|")[3]), row.split("|")[4]) for row in rows]
remote = Remote("yandex", url, 2, 20)
try:
    fetch.fetch_subjects(["09"], Path(root) / "data/ds003688", source="dvc", remote=remote, root=root, items=items)
except Exception as error:
    print(f"{getattr(error, 'exit_code', 1)} {error}")
"""


def child(root, remote, items):
    rows = ["|".join(map(str, item)) for item in items]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root), remote.url, *rows],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def scan_begun(root, items):
    """Temporary files of the scan in DVC's cache, which lie where it will lie; a small file's may come first."""
    (item,) = (item for item in items if item.path == BOLD)
    return list((root / ".dvc/cache/files/md5" / item.md5[:2]).glob("*.tmp"))


def traces(token):
    """What a token looks like in a file: itself, and the middle of its base64 wherever it begins."""
    found = [token.encode()]
    for before in range(3):
        coded = base64.b64encode(b"x" * before + token.encode())
        found.append(coded[4 if before else 0 : len(coded) // 4 * 4 - 4])
    return found
