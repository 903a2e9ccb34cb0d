"""Facts → HTML, by the templates in ``pages/``; whatever comes from outside is escaped there."""

import base64
import hashlib
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

SCRIPTS = "script-src 'self' file:"


@cache
def _environment():
    environment = Environment(
        loader=PackageLoader("bold_audio", "pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals["file"] = lambda name: Markup(environment.loader.get_source(environment, name)[0])
    return environment


def render(template, *, scripts=(), **facts):
    """Fill a template of ``pages/`` in; text is escaped unless it is already `markupsafe.Markup`.

    The page carries a policy that browsers enforce: it fetches nothing but the ``plotly.min.js`` beside it, and runs
    nothing but that and the scripts named here, whatever came into it from outside.

    Parameters
    ----------
    template : str
        Such as ``index.html.j2``.
    scripts : sequence of str
        Files of ``pages/`` that the page runs.
    facts
        What the template names.

    Returns
    -------
    str

    Raises
    ------
    jinja2.UndefinedError
        If a fact that the template needs is not given.
    """
    sources = [_environment().globals["file"](name) for name in scripts]
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in sources]
    policy = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; {SCRIPTS} {' '.join(hashes)}"
    return _environment().get_template(template).render(scripts=sources, policy=Markup(policy), **facts)


def plain(sentence):
    """A sentence without Markdown's marks, which only notebooks show.

    Examples
    --------
    >>> plain("**Δt** is `5 s`")
    'Δt is 5 s'
    """
    return sentence.replace("**", "").replace("`", "")
