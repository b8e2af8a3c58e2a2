"""A real browser, driven by the WebDriver protocol (W3C) over chromedriver's HTTP."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's own name for a reference
OPTIONS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


class Browser:
    """One window of Chromium, as wide as a phone."""

    def __init__(self) -> None:
        driver = shutil.which("chromedriver")
        if driver is None:
            pytest.skip("no chromedriver here: apt-get install chromium-driver")
        self._process = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._port = None
        for line in self._process.stdout:
            if found := re.search(r"successfully on port (\d+)", line):
                self._port = int(found[1])
                break
        wanted = {
            "goog:chromeOptions": {"args": [*OPTIONS, "--window-size=390,844"]},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        session = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{session['sessionId']}"

    def close(self) -> None:
        self._ask("DELETE", self._session)
        self._process.terminate()
        self._process.wait(20)
        self._process.stdout.close()

    def open(self, url: str) -> None:
        self._ask("POST", f"{self._session}/url", {"url": url})

    def url(self) -> str:
        return self._ask("GET", f"{self._session}/url")

    def text(self, css: str) -> str:
        return self._ask("GET", f"{self._element(css)}/text")

    def shown(self, css: str) -> bool:
        return self._ask("GET", f"{self._element(css)}/displayed")

    def type(self, css: str, text: str) -> None:
        """Text into a field; of a file field, the file's path."""
        self._ask("POST", f"{self._element(css)}/value", {"text": text})

    def click(self, css: str) -> None:
        self._ask("POST", f"{self._element(css)}/click", {})

    def run(self, script: str) -> Any:
        return self._ask("POST", f"{self._session}/execute/sync", {"script": script, "args": []})

    def devtools(self, command: str, **parameters: Any) -> Any:
        """One command of the DevTools protocol: another size, the dark palette, print."""
        asked = {"cmd": command, "params": parameters}
        return self._ask("POST", f"{self._session}/goog/cdp/execute", asked)

    def complaints(self) -> list[str]:
        """What the browser's console holds: broken policies, missing files, errors of scripts."""
        found = self._ask("POST", f"{self._session}/se/log", {"type": "browser"})
        return [line["message"] for line in found]

    def until(self, css: str, words: str, seconds: float = 30) -> str:
        end = time.monotonic() + seconds
        while words not in (found := self.text(css)):
            assert time.monotonic() < end, found
            time.sleep(0.05)
        return found

    def _element(self, css: str) -> str:
        asked = {"using": "css selector", "value": css}
        return (
            f"{self._session}/element/"
            + self._ask("POST", f"{self._session}/element", asked)[ELEMENT]
        )

    def _ask(self, method: str, path: str, body: dict | None = None) -> Any:
        line = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        line.request(method, path, None if body is None else json.dumps(body))
        answer = json.loads(line.getresponse().read())["value"]
        line.close()
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer


def absolute(path: Path) -> str:
    return str(path.resolve())
