"""What becomes of many subjects, as a table that lives in a terminal, and as one that stands at the end."""

import contextlib
import math
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live
from rich.table import Table

from bold_audio.cohort import state_of
from bold_audio.files import TIME

SHOWN = 20  # subjects in the live table
COLUMNS = ("subject", "state", "step", "for", "headline")


@contextlib.contextmanager
def live_table(tasks, ended, *, stream):
    """Function that draws the table again; nothing is drawn where ``stream`` is no terminal.

    Parameters
    ----------
    tasks : list of cohort.Task
    ended : dict of str to cohort.Ended
        By subject; grows while the table lives.
    stream : file
    """
    if not stream.isatty():
        yield lambda: None
        return
    with Live(console=Console(file=stream), auto_refresh=False, transient=True) as live:
        yield lambda: live.update(_table(tasks, ended), refresh=True)


def _table(tasks, ended):
    """Who is under way, then who failed, then who ended last, as many as there is room for; the others are counted."""
    waiting, rows = 0, []
    for task in tasks:
        one, (state, step, started, headline) = ended.get(task.subject), state_of(task)
        if one is not None:
            place = 1 if one.status else 2
            said = one.said if one.status else headline
            rows.append((place, task.subject, "failed" if place == 1 else "done", step, _seconds(one.seconds), said))
        elif state == "stopped":  # what a run says of itself while it runs
            rows.append((0, task.subject, "running", step, _since(started), headline))
        else:
            waiting += 1
    last = {subject: -k for k, subject in enumerate(ended)}
    rows.sort(key=lambda row: (row[0], last.get(row[1], 0)))
    table = Table(*COLUMNS, title=f"{len(ended)} of {len(tasks)} subjects have ended, {waiting} wait")
    for _, subject, *cells in rows[:SHOWN]:
        table.add_row(f"sub-{subject}", *(cell[:100] for cell in cells))
    if len(rows) > SHOWN:
        table.add_row("…", f"{len(rows) - SHOWN} more")
    return table


def _since(started):
    """How long a run has been under way, from the time that it wrote down; empty where that cannot be read."""
    with contextlib.suppress(ValueError):
        begun = datetime.strptime(started, TIME)
        return _seconds((datetime.now(UTC) - begun).total_seconds())
    return ""


def _seconds(value):
    return "" if math.isnan(value) else f"{value:.0f} s"


def line_of(one):
    """That a subject has ended, and how long it took where that is known."""
    took = _seconds(one.seconds)
    return f"sub-{one.subject}: {'failed' if one.status else 'done'}" + (f" in {took}" if took else "")


def lines_at_the_end(ended, left_alone):
    """What became of everybody, in lines: how many, and each who failed with the reason.

    Parameters
    ----------
    ended : list of cohort.Ended
    left_alone : int
        Subjects of whom everything was done before.
    """
    failed = [one for one in ended if one.status]
    before = f", {left_alone} were done before" if left_alone else ""
    n = len(ended) - len(failed)
    lines = [f"{n} subject{'s' * (n != 1)} done, {len(failed)} failed{before}"]
    return lines + [f"  sub-{one.subject} (exit {one.status}): {one.said}" for one in failed]
