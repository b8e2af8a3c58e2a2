"""A hook of the site: the script that makes search work without a server comes from here.

The theme's plugin `offline` names it at a public address; read offline, that would be no search.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

_ADDRESS = "https://unpkg.com/iframe-worker/shim"
_LOCAL = "assets/javascripts/iframe-worker.js"


def on_files(files: Any, config: Any) -> Any:
    """Put the script among the site's files."""
    source = Path(__file__).with_name("iframe-worker.js").read_text(encoding="utf-8")
    files.append(File.generated(config, _LOCAL, content=source))
    return files


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Name it there, from wherever the page lies."""
    depth = page.url.count("/")
    return output.replace(_ADDRESS, "../" * depth + _LOCAL)


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    """The same for the page of addresses that are not there."""
    return output_content.replace(_ADDRESS, _LOCAL)
