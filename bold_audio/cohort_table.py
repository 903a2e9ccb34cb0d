"""What becomes of many subjects, as a table that lives in a terminal, and as one that stands at the end."""

import contextlib
import math

from rich.console import Console
from rich.live import Live
from rich.table import Table

from bold_audio.cohort import state_of

SHOWN = 20  # subjects in the live table: those under way, and the last that ended
COLUMNS = ("subject", "state", "step", "since or seconds", "headline")


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
    rows = []
    for task in tasks:
        state, step, since, headline = state_of(task)
        one = ended.get(task.subject)
        if one is not None:
            state, since = ("failed" if one.status else "done"), _seconds(one.seconds)
            headline = one.said if one.status else headline
        elif state != "stopped":  # of an earlier run: "stopped" is what a run says of itself while it runs
            state, step, since, headline = "waiting", "", "", ""
        else:
            state = "running"
        rows.append((task.subject in ended, state == "waiting", (f"sub-{task.subject}", state, step, since, headline)))
    rows.sort(key=lambda row: row[:2])  # under way first, then waiting, then ended
    table = Table(*COLUMNS, title=f"{len(ended)} of {len(tasks)} subjects have ended", show_lines=False)
    for _, _, cells in rows[:SHOWN]:
        table.add_row(*(str(cell)[:100] for cell in cells))
    if len(rows) > SHOWN:
        table.add_row("…", f"{len(rows) - SHOWN} more")
    return table


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
