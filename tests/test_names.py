"""Names are the field's: words that mean the same thing otherwise are not used, in code or in prose."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = sorted(
    path for folder in ("bold_audio", "benchmarks", "docs", "tests") for path in ROOT.glob(f"{folder}/**/*.py")
)
PROSE = [
    *CODE,
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("notebooks/**/*.ipynb"),
    *ROOT.glob("params/**/*"),
]
# What is not said → what is: repetition time, delay, sound, features, subject, encoding model, ceiling.
NOT_NAMES = {
    "mu": "t_r",
    "freq": "t_r",
    "dt": "delay",
    "nu": "sr",
    "waveform": "y",
    "embedding": "X",
    "embeddings": "X",
}
NOT_NAMES |= {
    "patient": "subject",
    "decoder": "encoding model",
    "noise_ceiling": "intersubject_ceiling",
}
NOT_WORDS = re.compile(r"\b(patients?|waveforms?|noise ceilings?|embeddings?|snapshots? of the brain)\b", re.IGNORECASE)


def identifiers(path):
    """Names that a module gives to functions, classes, arguments and variables, with their line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno


@pytest.mark.slow
@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_uses_the_names_of_the_field(path):
    found = [f"line {line}: {name}, not {NOT_NAMES[name]}" for name, line in identifiers(path) if name in NOT_NAMES]
    assert not found


@pytest.mark.parametrize("path", [p for p in PROSE if p.is_file()], ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_uses_the_words_of_the_field(path):
    text = path.read_text(encoding="utf-8")
    if path == Path(__file__):
        return
    assert not NOT_WORDS.findall(text)
