"""JupyterLab and Chromium, as a person uses them: a server on loopback, a notebook in a page, and its kernel."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from processes import free_port

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
SIZE = {"width": 1280, "height": 1500}
HARMLESS = ("favicon",)  # a page without an icon is no fault


def chromium_path():
    """Path of Chromium; None where there is none."""
    named = os.environ.get("BROWSER_PATH")
    return named or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def missing():
    """Why no browser can be used; empty where one can."""
    if chromium_path() is None:
        return "no Chromium - apt-get install chromium"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "no playwright - pip install playwright"
    return ""


@contextlib.contextmanager
def running(command, *, folder, port, **variables):
    """A server while it is needed: it and its children are ended afterwards."""
    own = {
        name: str(folder / name.lower()) for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")
    }
    settings = {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "work")}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | own | settings | variables,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        for _ in range(600):
            # A connection alone: voila runs its notebook at every request.
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
                break
            if process.poll() is not None:
                raise RuntimeError((folder / "server.log").read_text())
            time.sleep(0.2)
        else:
            raise RuntimeError("the server did not start: " + (folder / "server.log").read_text())
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


class Lab:
    """A JupyterLab on loopback with a token, whose notebooks lie in ``folder``."""

    def __init__(self, folder):
        self.folder, self.token, self.port = Path(folder), secrets.token_hex(8), free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def start(self):
        """Run the server."""
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
        command += [f"--port={self.port}", f"--IdentityProvider.token={self.token}", "--ServerApp.port_retries=0"]
        command += [f"--ServerApp.root_dir={self.folder}", "--LabApp.expose_app_in_browser=True"]
        command += ["--ServerApp.log_level=WARN"]
        news = self.folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
        news.parent.mkdir(parents=True, exist_ok=True)
        news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
        with running(command, folder=self.folder, port=self.port):
            yield self

    def write(self, name, *cells):
        """Write a notebook of code cells."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.folder / name)

    def open(self, page, name):
        """Open a notebook in a page and wait for its kernel."""
        page.goto(f"{self.url}/lab/tree/{name}?token={self.token}&reset")
        page.wait_for_function("() => window.jupyterapp && window.jupyterapp.restored", timeout=120_000)
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
        return page.evaluate(
            """async () => {
                 const app = window.jupyterapp, panel = app.shell.currentWidget;
                 await panel.context.ready;
                 await panel.sessionContext.ready;
                 app.shell.collapseLeft();
                 app.shell.collapseRight();
                 while (panel.sessionContext.session?.kernel?.status !== 'idle')
                   await new Promise((done) => setTimeout(done, 50));
               }"""
        )

    def run_cell(self, page, number):
        """Run one cell and wait until it is done."""
        return page.evaluate(
            """async (n) => {
                 const panel = window.jupyterapp.shell.currentWidget;
                 panel.content.activeCellIndex = n;
                 panel.content.mode = 'command';
                 window.jupyterapp.shell.activateById(panel.id);
                 return await window.jupyterapp.commands.execute('notebook:run-cell');
               }""",
            number,
        )

    def ask_kernel(self, code):
        """Run code in the only kernel, from outside, and give what it printed last as JSON."""
        from jupyter_client import BlockingKernelClient

        (file,) = (self.folder / "jupyter_runtime_dir").glob("kernel-*.json")
        client = BlockingKernelClient(connection_file=str(file))
        client.load_connection_file()
        client.start_channels()
        said = []
        try:
            client.wait_for_ready(timeout=60)
            reply = client.execute_interactive(
                code,
                timeout=120,
                output_hook=lambda m: said.append(m["content"]["text"]) if m["msg_type"] == "stream" else None,
            )
        finally:
            client.stop_channels()
        if reply["content"]["status"] != "ok":
            raise RuntimeError("\n".join(reply["content"].get("traceback", [])))
        return json.loads("".join(said).strip().splitlines()[-1]) if said else None


@contextlib.contextmanager
def chromium():
    """Chromium, without a screen."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def new_page(browser, size=SIZE):
    """A page; its ``faults`` are errors of its console and requests to other hosts."""
    page = browser.new_context(viewport=size).new_page()
    page.faults = []
    page.on("console", lambda said: _note(page, said) if said.type == "error" else None)
    page.on("pageerror", lambda error: page.faults.append(f"error: {error}"))
    page.on("request", lambda request: _note_request(page, request.url))
    return page


def _note(page, said):
    text = f"console: {said.text} ({said.location.get('url', '')})"
    if not any(word in text for word in HARMLESS):
        page.faults.append(text)


def _note_request(page, url):
    if url.split(":")[0] in ("http", "https", "ws", "wss") and "//127.0.0.1:" not in url:
        page.faults.append(f"request to another host: {url}")
