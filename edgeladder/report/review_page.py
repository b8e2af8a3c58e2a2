"""Pages with thumbnails for a person to decide by: what `check` found, what `suggest` proposes.

Self-contained as every page: pictures are in it as JPEGs, and no more of them than a worker made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from edgeladder import __version__
from edgeladder.core.files import write_text
from edgeladder.core.ownership import GENERATOR, require_ours
from edgeladder.core.printable import printable
from edgeladder.core.review import Duplicate, Review
from edgeladder.report.style import STYLE

_LINES = 200  # of each list: the whole of them is in --json
_GRID = """
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(132px,1fr));gap:12px}
.grid figure{margin:0}
.grid img,.grid .no{width:96px;height:96px;border-radius:6px;display:block;background:var(--line)}
.grid figcaption{font-size:.8rem;line-height:1.3;overflow-wrap:anywhere}
.grid small{color:var(--muted)}
.group{border-top:1px solid var(--line);padding:10px 0}
"""


def write_review(path: Path, found: Review, *, pictures: bool = True) -> Path:
    """Write the page of a check.

    Args:
        path: the page.
        found: what was found, with thumbnails where they are wanted.
        pictures: whether thumbnails are shown.

    Raises:
        ConfigError: the path holds what is no page of ours.
        StorageError: no space left.
    """
    shown = found.thumbnails if pictures else {}
    sections = [
        _section("Labels that are probably wrong", _suspects(found, shown)),
        _section("The same picture twice", _duplicates(found.duplicates, shown)),
        _section("Classes that are confused", _confused(found)),
        _section("Classes with few pictures", _small(found)),
    ]
    if found.skipped:
        rows = [(item.get("path", ""), item.get("reason", "")) for item in found.skipped[:_LINES]]
        sections.append(_section("Pictures that cannot be read", table(("picture", "why"), rows)))
    subtitle = f"{found.count} pictures of {len(found.classes)} classes"
    return write_page(path, "Pictures and labels", subtitle, sections)


def write_page(path: Path, title: str, subtitle: str, sections: Sequence[str]) -> Path:
    """Write a self-contained page of sections; raises as `write_review`."""
    require_ours(path, "page")
    text = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"{GENERATOR}\n<title>{escape(title)} · EdgeLadder</title>\n"
        f"<style>{STYLE}{_GRID}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>\n<main>\n"
        + "\n".join(sections)
        + f"\n</main>\n<footer>EdgeLadder {escape(__version__)}</footer>\n</body>\n</html>\n"
    )
    write_text(path, printable(text))
    return path


def figure(path: str, thumbnails: Mapping[str, str], lines: Sequence[str]) -> str:
    """A picture with a few lines below it; without a thumbnail, the lines alone."""
    image = ""
    if path in thumbnails:
        image = f'<img alt="" src="data:image/jpeg;base64,{escape(thumbnails[path])}">'
    elif thumbnails:
        image = '<div class="no"></div>'
    text = "<br>".join(escape(line) for line in lines)
    caption = f"<figcaption>{text}<br><small>{escape(path)}</small></figcaption>"
    return f"<figure>{image}{caption}</figure>"


def grid(figures: Sequence[str]) -> str:
    """Figures side by side."""
    return f'<div class="grid">{"".join(figures)}</div>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _none(words: str) -> str:
    return f'<p class="none">{escape(words)}</p>'


def _suspects(found: Review, thumbnails: Mapping[str, str]) -> str:
    if not found.judged:
        return _none("no two classes have two pictures each: no label can be judged")
    if not found.suspects:
        return _none("none")
    figures = [
        figure(
            item.path,
            thumbnails,
            [
                f"{item.label}: {100 * item.probability:.1f} %",
                f"{item.suggested}? {100 * item.suggested_probability:.0f} %",
            ],
        )
        for item in found.suspects[:_LINES]
    ]
    more = f"<p>{len(figures)} of {found.suspected}, the least probable first.</p>"
    return more + grid(figures)


def _duplicates(groups: Sequence[Duplicate], thumbnails: Mapping[str, str]) -> str:
    if not groups:
        return _none("none in two classes, none on two sides of a split")
    parts = []
    for group in groups[:_LINES]:
        where = [
            words
            for words, true in (
                ("two classes", group.across_classes),
                ("two splits", group.across_splits),
            )
            if true
        ]
        figures = [
            figure(item.path, thumbnails, [f"{item.label} ({item.split})"])
            for item in group.pictures[:12]
        ]
        line = f"{group.kind}, in {' and '.join(where)}"
        parts.append(f'<div class="group"><p>{escape(line)}</p>{grid(figures)}</div>')
    return "".join(parts)


def _confused(found: Review) -> str:
    if not found.confused:
        return _none("none")
    rows = [
        (" / ".join(item.classes), str(item.count), f"{100 * item.share:.1f} %")
        for item in found.confused
    ]
    return table(("classes", "taken for the other", "of both"), rows)


def _small(found: Review) -> str:
    if not found.small_classes:
        return _none(f"every class has {found.few} training pictures or more")
    return table(
        ("class", "training pictures"),
        [(item.label, str(item.count)) for item in found.small_classes],
    )
