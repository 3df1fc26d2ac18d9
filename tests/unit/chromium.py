"""A headless Chromium for tests, driven over a pair of pipes: no port, no library."""

import json
import os
import select
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe",
    "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--force-color-profile=srgb",
)  # fmt: skip
TIMEOUT = 120


def find():
    """The browser's path, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page. A context manager; what it said and asked for is in `console` and `requests`.

    Parameters
    ----------
    profile : path
        A folder for what the browser writes.
    """

    def __init__(self, profile, width=1300, height=800):
        self.console = []
        self.requests = []
        self._number = 0
        self._rest = b""
        to_child, self._out = os.pipe()
        self._in, from_child = os.pipe()

        def pipes():  # Chromium reads commands from 3 and answers on 4
            spare = [os.dup(to_child), os.dup(from_child)]
            for target, source in zip((3, 4), spare, strict=True):
                os.dup2(source, target)

        self._process = subprocess.Popen(
            [find(), *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=pipes, close_fds=False,
        )  # fmt: skip
        os.close(to_child)
        os.close(from_child)
        self._session = None
        (target,) = (
            t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"
        )
        attach = dict(targetId=target["targetId"], flatten=True)
        self._session = self.call("Target.attachToTarget", **attach)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def call(self, method, **params):
        """The result of a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, path):
        """Load a file and wait until its script says that it is ready."""
        self.call("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + TIMEOUT
        while self.value("document.body && document.body.dataset.ready") != "yes":
            assert time.monotonic() < deadline and not self.console, self.console
            time.sleep(0.02)

    def value(self, expression):
        """What a JavaScript expression is, as plain data."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def mouse(self, kind, x, y, **more):
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def screenshot(self):
        """A PNG's bytes."""
        import base64

        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def _read(self):
        deadline = time.monotonic() + TIMEOUT
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0, deadline - time.monotonic()))
            data = os.read(self._in, 1 << 20) if ready else b""
            assert data, "Chromium does not answer"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(message)
        method, params = message.get("method"), message.get("params", {})
        if method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.console.append(json.dumps(params)[:500])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        return message

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        os.close(self._out)
        os.close(self._in)
        self._process.terminate()
        self._process.wait(TIMEOUT)
