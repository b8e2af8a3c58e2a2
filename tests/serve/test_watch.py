"""`edgeladder watch` on real folders, killed and started again: a line a picture, exactly one."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from edgeladder.cli import app as application
from edgeladder.core.inference import Label
from edgeladder.core.run_list import pin_run
from edgeladder.serve.arrivals import Arrival, Arrivals, is_network
from edgeladder.serve.journal import COLUMNS, Entry, Journal
from edgeladder.serve.placing import Places, folder_name, place
from tests.serve.conftest import Running


def watching(run: Path, folder: Path, out: Path, *words: str) -> Running:
    return Running(
        "watch", str(folder), "--run", str(run), "--out", str(out), "--budget", "400MB",
        "--settle", "0.1", *words,
    )  # fmt: skip


def rows(out: Path) -> list[dict[str, str]]:
    if not out.exists():
        return []
    with open(out, newline="") as stream:
        return list(csv.DictReader(stream))


def until(true, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_pictures_are_labelled_as_they_arrive(nano_run, pictures, tmp_path):
    inbox, out = tmp_path / "in", tmp_path / "answers.csv"
    inbox.mkdir()
    shutil.copy(pictures[0], inbox / "before.png")
    sorted_, aside = tmp_path / "sorted", tmp_path / "aside"
    watch = watching(nano_run, inbox, out, "--sort-into", str(sorted_), "--set-aside", str(aside))
    watch.says("watching ")
    until(lambda: len(rows(out)) == 1)
    # written in pieces: taken when it is whole
    content = pictures[4].read_bytes()
    with open(inbox / "slow.png", "wb") as stream:
        for start in range(0, len(content), 800):
            stream.write(content[start : start + 800])
            stream.flush()
            time.sleep(0.03)
    (inbox / "later").mkdir()
    shutil.copy(pictures[8], inbox / "later" / "=1+1.png")
    (inbox / "broken.png").write_bytes(b"not a picture")
    (inbox / "notes.txt").write_text("left alone")
    (inbox / "upload.part").write_bytes(content)
    os.rename(inbox / "upload.part", inbox / "slow2.png")
    until(lambda: len(rows(out)) == 5)
    code, said = watch.end()
    assert code == 0
    assert said == "5 pictures labelled, 1 of them unreadable, 0 of no known class\n"
    found = {row["path"]: row for row in rows(out)}
    assert set(found) == {"before.png", "slow.png", "later/=1+1.png", "broken.png", "slow2.png"}
    for name, row in found.items():
        assert bool(row["error"]) == (name == "broken.png")
        assert Path(row["target"]).is_file()
        assert not (inbox / name).exists()
    assert Path(found["slow.png"]["target"]).parent == sorted_ / found["slow.png"]["label"]
    assert Path(found["broken.png"]["target"]) == aside / "broken.png"
    assert sum("cannot be read" in line for line in watch.lines) == 1
    assert (inbox / "notes.txt").read_text() == "left alone"
    watch.stop()


def test_killed_again_and_again_it_neither_loses_nor_doubles(nano_run, pictures, tmp_path):
    inbox, out, sorted_ = tmp_path / "in", tmp_path / "answers.csv", tmp_path / "sorted"
    inbox.mkdir()
    for number in range(24):
        shutil.copy(pictures[number % len(pictures)], inbox / f"{number}.png")
    for after in (2, 9):
        watch = watching(nano_run, inbox, out, "--sort-into", str(sorted_))
        until(lambda least=after: len(rows(out)) >= least)
        watch.process.send_signal(signal.SIGKILL)
        watch.stop()
    with open(out, "a") as stream:
        stream.write("2026-01-01T00:00:00+00:00,torn.p")  # what a power cut leaves
    watch = watching(nano_run, inbox, out, "--sort-into", str(sorted_), "--once")
    assert watch.process.wait(120) == 0, watch.lines
    watch.stop()
    counted = Counter(row["path"] for row in rows(out))
    assert counted == {f"{number}.png": 1 for number in range(24)}
    assert not list(inbox.iterdir())
    assert len([path for path in sorted_.rglob("*") if path.is_file()]) == 24


def test_a_second_one_on_the_same_answers_is_refused(nano_run, tmp_path, capfd):
    inbox = tmp_path / "in"
    inbox.mkdir()
    journal = Journal(tmp_path / "a.csv")
    words = ["watch", str(inbox), "--run", str(nano_run), "--out", str(tmp_path / "a.csv")]
    assert application.main([*words, "--once", "--json"]) == 2
    assert "another process" in json.loads(capfd.readouterr().out)["error"]["message"]
    journal.close()
    assert application.main([*words[:1], str(tmp_path / "no"), *words[2:], "--json"]) == 2
    assert application.main([*words[:-1], "a.txt", "--json"]) == 2


# ---- the parts


def entry(name: str, target: str | None = None, size: int = 1, error: str | None = None) -> Entry:
    return Entry(
        time="2026-01-01T00:00:00+00:00", arrival=Arrival(name, size, 5),
        labels=() if error else (Label(label="=hat", probability=0.5),), known=None,
        unknown=False, error=error, target=target,
    )  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_the_file_alone_says_what_is_done(tmp_path, suffix):
    out = tmp_path / f"a{suffix}"
    names = ["a.png", "b/ü.png", "=c.png", 'q".png', "d,e.png"]
    journal = Journal(out)
    for name in names:
        journal.add(entry(name))
    journal.add(entry("t.png", target="/x/t.png"))
    journal.close()
    for left in tmp_path.glob("*.state*"):  # a power cut took the database
        left.unlink()
    with open(out, "ab") as stream:
        stream.write(b'{"torn')
    journal = Journal(out)
    for name in names:
        assert journal.is_done(Arrival(name, 1, 5))
        assert not journal.is_done(Arrival(name, 2, 5))
    assert journal.unplaced() == [(Arrival("t.png", 1, 5), "/x/t.png")]
    journal.placed(Arrival("t.png", 1, 5), is_gone=False)
    assert journal.unplaced() == []
    journal.add(entry("new.png", error="+damaged\nindeed"))
    journal.close()
    text = out.read_text()
    assert text.endswith("\n")
    if suffix == ".csv":
        assert [len(row) for row in csv.reader(text.splitlines())] == [len(COLUMNS)] * 8
        assert "'=hat" in text
        assert "./=c.png" in text


def test_a_line_that_does_not_fit_is_not_half_there(tmp_path, monkeypatch):
    from edgeladder.core import disk
    from edgeladder.core.errors import StorageError

    journal = Journal(tmp_path / "a.csv")
    journal.add(entry("a.png"))
    before = (tmp_path / "a.csv").read_bytes()

    def full(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write", full)
        with pytest.raises(StorageError):
            journal.add(entry("b.png"))
    assert (tmp_path / "a.csv").read_bytes() == before
    assert not journal.is_done(Arrival("b.png", 1, 5))
    os.rename(tmp_path / "a.csv", tmp_path / "a.csv.1")  # logrotate
    journal.add(entry("b.png"))
    assert [row["path"] for row in rows(tmp_path / "a.csv")] == ["b.png"]
    assert journal.is_done(Arrival("a.png", 1, 5))
    journal.close()


@pytest.mark.parametrize("there", ["/dev/null", "pipe", "/"])
def test_answers_go_into_plain_files_only(tmp_path, there):
    from edgeladder.core.errors import ConfigError

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.csv").symlink_to(tmp_path / there)
    with pytest.raises(ConfigError, match="no plain file"):
        Journal(tmp_path / "a.csv")


def test_a_file_of_another_making_is_not_written_to(tmp_path):
    from edgeladder.core.errors import DataError

    (tmp_path / "a.csv").write_text("my,own\n1,2\n")
    with pytest.raises(DataError, match="other columns"):
        Journal(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "my,own\n1,2\n"


def test_where_pictures_go(tmp_path):
    from edgeladder.core.inference import Prediction

    hat = [Label(label="a/b", probability=1.0)]
    places = Places(sort_into=tmp_path / "s", ask=tmp_path / "ask", set_aside=tmp_path / "bad")
    assert places.target("x/1.png", Prediction(path="", labels=hat)) == tmp_path / "s/a_b/1.png"
    unknown = Prediction(path="", labels=hat, unknown=True)
    assert places.target("1.png", unknown) == tmp_path / "ask/1.png"
    assert Places(sort_into=tmp_path).target("1.png", unknown) == tmp_path / "_unknown/1.png"
    assert Places().target("1.png", unknown) is None
    bad = Prediction(path="", labels=[], error="no")
    assert places.target("1.png", bad) == tmp_path / "bad/1.png"
    assert {folder_name(name) for name in ("..", "", ".x", "../../etc")} == {
        "_..", "_", "_.x", "_.._.._etc"
    }  # fmt: skip


def make(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("copy", [True, False])
def test_no_file_is_replaced_and_a_cut_move_is_finished(tmp_path, monkeypatch, links, copy):
    if not links:

        def refused(*_: object, **__: object) -> None:
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", refused)
    one = make(tmp_path / "in/1.png", "new")
    make(tmp_path / "out/1.png", "old")
    found = place(one, tmp_path / "out/1.png", copy=copy)
    assert found == tmp_path / "out/1-2.png"
    assert found.read_text() == "new"
    assert (tmp_path / "out/1.png").read_text() == "old"
    assert one.exists() == copy
    # the same once more, as after a crash between the two halves
    one.write_text("new")
    assert place(one, found, copy=copy) == found
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1-2.png", "1.png"]


def test_arrivals_by_looking_alone(tmp_path):
    """As on a network folder: nothing tells, clocks may differ."""
    done: set[Arrival] = set()
    seen = make(tmp_path / "in/a.png", "x")
    os.utime(seen, (4e9, 4e9))  # a clock far ahead
    make(tmp_path / "in/skip/b.png", "x")
    make(tmp_path / "in/.hidden/b.png", "x")
    make(tmp_path / "in/empty.png", "")
    (tmp_path / "in/link.png").symlink_to(seen)
    with Arrivals(
        tmp_path / "in", done.__contains__, (tmp_path / "in/skip",), 0.05, 0.1, lambda line: None
    ) as arrivals:
        (found,) = arrivals.ready(5)
        assert found.name == "a.png"
        done.add(found)
        assert arrivals.ready(0.3) == []
        with open(tmp_path / "in/grows.png", "w") as stream:
            for _ in range(8):
                stream.write("x" * 10)
                stream.flush()
                assert arrivals.ready(0.02) == []
        (grown,) = arrivals.ready(5)
        assert (grown.name, grown.size) == ("grows.png", 80)
        done.add(grown)
        seen.write_text("another picture")
        assert [item.size for item in arrivals.ready(5)] == [15]
    assert not is_network(tmp_path)


def test_a_unit_that_systemd_takes(nano_run, tmp_path, capfd, monkeypatch):
    words = ["--run", str(nano_run), "--budget", "400MB", "--print-unit"]
    inbox = tmp_path / "in $1 %h"
    sorting = ["--out", str(tmp_path / "o/a.csv"), "--sort-into", str(tmp_path / "s")]
    assert application.main(["watch", str(inbox), *words, *sorting]) == 0
    text = capfd.readouterr().out
    assert "MemoryMax=400000000\n" in text
    assert "in $$1 %%h" in text
    assert application.main(["serve", *words]) == 0
    serve = capfd.readouterr().out
    assert "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6" in serve
    assert application.main(["serve", "--run", str(nano_run), "--print-unit"]) == 2
    capfd.readouterr()
    monkeypatch.chdir(tmp_path)  # where no run is named, the pinned one serves
    for name in ("pinned", "newer"):
        shutil.copytree(nano_run, Path("runs") / name)
    pin_run(Path("runs/pinned"))
    os.utime("runs/newer", (2e9, 2e9))
    for command in (["serve"], ["watch", str(inbox)]):
        assert application.main([*command, "--budget", "400MB", "--print-unit"]) == 0
        assert f"--run {tmp_path / 'runs' / 'pinned'} " in capfd.readouterr().out
    if shutil.which("systemd-analyze") is None:
        return
    import subprocess

    for name, unit in (("a.service", text), ("b.service", serve)):
        (tmp_path / name).write_text(unit)
        done = subprocess.run(
            ["systemd-analyze", "verify", tmp_path / name], capture_output=True, text=True
        )
        complaints = [x for x in done.stderr.splitlines() if "DelegateSubgroup" not in x]
        assert (done.returncode, complaints) == (0, [])


@pytest.mark.parametrize(
    "line",
    [b"[" * 100_000, b'{"path":"a","size":1e999,"modified":1,"target":null}',
     b'{"path":"a","size":' + b"9" * 30 + b',"modified":1,"target":null}',
     b'{"path":"\\ud800","size":1,"modified":1,"target":null}',
     b'{"path":"a","size":1,"modified":1,"target":[1]}'],
)  # fmt: skip
def test_a_line_of_anybodys_in_the_answers_is_passed_over(tmp_path, line):
    out = tmp_path / "a.jsonl"
    out.write_bytes(line + b"\n")
    journal = Journal(out)
    journal.add(entry("b.png"))
    journal.close()
    assert out.read_bytes().startswith(line) and out.read_text().count("\n") == 2


def test_a_cell_longer_than_a_csv_may_have_is_passed_over(tmp_path):
    out = tmp_path / "a.csv"
    out.write_text(",".join(COLUMNS) + "\n" + "x" * 200_000 + "\n")
    journal = Journal(out)
    assert not journal.is_done(Arrival("x", 1, 5))
    journal.close()


def test_a_state_of_another_making_is_said_to_be_damaged(tmp_path):
    import sqlite3

    from edgeladder.core.errors import ConfigError, DataError

    out, state = tmp_path / "a.csv", tmp_path / "a.csv.state"
    for table in ("read (position TEXT)", "done (name TEXT, size, modified, target, more)"):
        state.unlink(missing_ok=True)
        with sqlite3.connect(state) as made:
            made.execute(f"CREATE TABLE {table}")
            if table.startswith("read"):
                made.execute("INSERT INTO read VALUES ('far')")
        made.close()
        with pytest.raises(DataError, match="damaged"), contextlib.closing(Journal(out)) as made:
            made.add(entry("a.png"))
    state.unlink(missing_ok=True)
    state.mkdir()
    for path in (out, tmp_path / ("x" * 251 + ".csv")):
        with pytest.raises(ConfigError):
            Journal(path)


def test_a_disk_that_is_full_for_the_state_is_said(tmp_path):
    from edgeladder.core.errors import StorageError

    journal = Journal(tmp_path / "a.csv")
    pages = journal._database.execute("PRAGMA page_count").fetchone()[0]
    journal._database.execute(f"PRAGMA max_page_count = {pages}")

    def go_on() -> None:
        for number in range(200):
            journal.add(entry(f"{number}" * 60))

    with pytest.raises(StorageError, match="full"):
        go_on()
    journal.close()
