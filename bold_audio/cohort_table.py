"""What becomes of many subjects, as a table that lives in a terminal, and as one that stands at the end."""

import contextlib
import math
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live
from rich.table import Table

from bold_audio.cohort import state_of

SHOWN = 20  # subjects in the live table
LOOKED_AT = 300  # subjects not yet ended whose files are looked at: they begin in the order of the list
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
    since = datetime.now(UTC).replace(microsecond=0)  # as files tell it
    with Live(console=Console(file=stream), auto_refresh=False, transient=True) as live:
        yield lambda: live.update(_table(tasks, ended, since), refresh=True)


def _table(tasks, ended, since):
    """Who is under way, then who failed, then who ended last, as many as there is room for; the others are counted."""
    open_tasks = [task for task in tasks if task.subject not in ended]
    looked_at = [(task.subject, *state_of(task, since)) for task in open_tasks[:LOOKED_AT]]
    rows = [
        (subject, "running", step, _for(begun), headline)
        for subject, state, step, begun, headline in looked_at
        if state == "stopped"  # what a run says of itself while it runs
    ]
    waiting, by_subject = len(open_tasks) - len(rows), {task.subject: task for task in tasks}
    over = sorted(reversed(ended.values()), key=lambda one: not one.status)
    rows = rows[:SHOWN] + [_ended_row(by_subject[one.subject], one, since) for one in over[: max(SHOWN - len(rows), 0)]]
    table = Table(*COLUMNS, title=f"{len(ended)} of {len(tasks)} subjects have ended, {waiting} wait")
    for subject, *cells in rows:
        table.add_row(f"sub-{subject}", *(cell[:100] for cell in cells))
    if more := len(tasks) - waiting - len(rows):
        table.add_row("…", f"{more} more")
    return table


def _ended_row(task, one, since):
    _, step, _, headline = state_of(task, since)
    state, said = ("failed", one.said) if one.status else ("done", headline)
    return task.subject, state, step, _seconds(one.seconds), said


def _for(begun):
    """How long a run has been under way; empty where nobody knows when it began."""
    return "" if begun is None else _seconds((datetime.now(UTC) - begun).total_seconds())


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
