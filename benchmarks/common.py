"""What several benchmarks share: commands, how sure a count is, what was asked of it, rows kept as they come."""

import json
import operator
import os
import sys
import sysconfig
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from bold_audio import provenance

SCRIPTS = Path(sysconfig.get_path("scripts"))
HOLDS = {"<=": operator.le, ">=": operator.ge}


def words_of(given):
    """Parameters as words of the command line."""
    return [word for name, value in given.items() for word in ("-p", name, json.dumps(value))]


def interval(k, n):
    """Exact 95 % interval (Clopper-Pearson) of the rate that gave ``k`` of ``n``: (low, high)."""
    return tuple(stats.binomtest(int(k), int(n)).proportion_ci(method="exact"))


def most(n, level):
    """What is asked of a share of ``n`` whose rate is meant to be ``level``: a right method passes in 97.5 %."""
    return "<=", float(stats.binom.ppf(0.975, n, level) / n)


def in_words(asked):
    """What is asked as text; "" where nothing is."""
    return "" if asked is None else f"{asked[0]} {asked[1]:.3g}"


def held(value, asked):
    """Whether a number is as asked: yes, no, or "" where nothing is; no number is as asked."""
    if asked is None:
        return ""
    return "yes" if HOLDS[asked[0]](value, asked[1]) or np.isclose(value, asked[1], rtol=1e-6) else "no"


def with_intervals(table):
    """The table with what its counts stand for: ``low`` and ``high`` of rows that are ``counted``."""
    spans = [interval(round(row.value * row.n), row.n) if row.counted else (np.nan,) * 2 for row in table.itertuples()]
    return table.drop(columns="counted").assign(low=[low for low, _ in spans], high=[high for _, high in spans])


def missed(table, known, columns):
    """Rows that do not hold and were not known not to: list of str.

    Parameters
    ----------
    table : DataFrame
        With ``held``.
    known : set of tuple
        Of misses that the documents tell.
    columns : list of str
        What names a row.
    """
    rows = table.loc[table["held"] == "no", columns].itertuples(index=False, name=None)
    return [", ".join(row) for row in rows if row not in known]


def code_of(benchmark, *modules):
    """Hash of a benchmark's own file and of the package's code that it measures."""
    own = sha256(Path(benchmark).read_bytes()).hexdigest()
    return sha256((own + provenance.code_fingerprint(*modules)).encode()).hexdigest()[:16]


def measure_rows(tasks, work, rows_file, *, same, n_processes, alone=()):
    """Every task that ``rows_file`` does not hold yet: table of the rows asked for.

    Parameters
    ----------
    tasks : list of (kind, number)
    work : callable
        (kind, number, folder=) → dict with ``kind``, ``number`` and ``took``, s.
    rows_file : Path
        JSON lines; each row is written as it comes.
    same : dict
        What a row that is there must say to be taken, such as the hash of the code that made it.
    n_processes : int
        Tasks at once, each with one core.
    alone : sequence of str
        Kinds that are measured before the others, one by one, with all cores.
    """
    there = [json.loads(line) for line in rows_file.read_text().splitlines()] if rows_file.is_file() else []
    rows = [row for row in there if all(row.get(name) == value for name, value in same.items())]
    if len(rows) < len(there):
        print(f"{len(there) - len(rows)} rows are of other code or settings: left out.", file=sys.stderr)
    done = {(row["kind"], row["number"]) for row in rows}
    left = [task for task in tasks if task not in done]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, rows_file.open("a") as file:

        def keep(row):
            rows.append(same | row)
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
            print(f"{len(rows)}: {row['kind']} {row['number']}, {row['took']:.0f} s", file=sys.stderr, flush=True)

        for task in left:
            if task[0] in alone:
                keep(work(*task, folder=folder))
        os.environ |= {"OMP_NUM_THREADS": "1", "LOKY_MAX_CPU_COUNT": "1"}
        with ProcessPoolExecutor(n_processes, mp_context=get_context("spawn")) as pool:
            rest = [task for task in left if task[0] not in alone]
            for one in as_completed([pool.submit(partial(work, folder=folder), *task) for task in rest]):
                keep(one.result())
    wanted = set(tasks)
    return pd.DataFrame([row for row in rows if (row["kind"], row["number"]) in wanted])
