"""What a person names and is no plain file, or an endless one, is refused at once."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeladder.cli.app import main
from edgeladder.cli.export_command import class_names
from edgeladder.core import plain_files
from edgeladder.core.decisions import read_decisions
from edgeladder.core.errors import ConfigError, DataError, IntegrityError
from edgeladder.core.failures import known_failure
from edgeladder.core.files import read_json, sha256_file
from edgeladder.core.plain_files import NotPlainError, read_plain, read_plain_text
from edgeladder.core.signature import sign
from edgeladder.core.tensors import TensorFile, is_intact
from edgeladder.core.trusted_keys import read_keys
from edgeladder.core.yaml_text import read_yaml
from edgeladder.fleet.ansible import looks_like
from edgeladder.fleet.trust import Pins
from edgeladder.jobs.run_directory import read_metrics
from edgeladder.runtime.pictures.dataset import open_data
from edgeladder.runtime.pictures.tables import listing, read_rows
from edgeladder.serve.token import token_from

SECONDS = 5
Reader = Callable[[Path], object]

READERS: dict[str, tuple[Reader, str, type[Exception]]] = {
    # name: (reader, the file's name, the error it ends in)
    "yaml": (read_yaml, "a.yaml", ConfigError),
    "keys": (read_keys, "a.pub", ConfigError),
    "private key": (lambda path: sign(path.parent, "adapter", path), "a.key", ConfigError),
    "token": (token_from, "token", ConfigError),
    "decisions": (read_decisions, "a.csv", DataError),
    "csv": (read_rows, "a.csv", DataError),
    "jsonl": (read_rows, "a.jsonl", DataError),
    "data": (open_data, "a.csv", DataError),
    "json": (read_json, "a.json", ValueError),
    "hash": (sha256_file, "a.onnx", NotPlainError),
    "tensors": (TensorFile, "a.safetensors", IntegrityError),
    "metrics": (lambda path: list(read_metrics(path)), "metrics.jsonl", NotPlainError),
    "ansible": (lambda path: read_yaml(path) if not looks_like(path) else None, "a.yml",
                ConfigError),
}  # fmt: skip
IN_BLOCKS = {"hash", "tensors", "metrics"}  # these take files of any size
# these look for a plain file first, so that only its size is left to refuse
SIZES: dict[str, tuple[Reader, str, type[Exception]]] = {
    "classes of an export": (lambda path: class_names(str(path)), "names.txt", ConfigError),
    "classes": (listing, "classes.yaml", DataError),
    "known hosts": (Pins, "known_hosts", ConfigError),
}


@contextlib.contextmanager
def soon() -> Iterator[None]:
    """Fail where the block waits for ever."""

    def late(*_: object) -> None:
        raise AssertionError("it waits, or reads for ever")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def few_bytes() -> Iterator[None]:
    """Memory for 1 GB: reading what does not end fails rather than fill this machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    used = int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_DATA, (used + (1 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@pytest.mark.usefixtures("few_bytes")
@pytest.mark.parametrize("kind", ["pipe", "zero", "folder"])
@pytest.mark.parametrize("name", READERS)
def test_no_plain_file_is_refused_at_once(name: str, kind: str, tmp_path: Path) -> None:
    read, file_name, error = READERS[name]
    path = tmp_path / file_name
    if kind == "pipe":
        os.mkfifo(path, 0o600)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir(0o700)
    with soon(), pytest.raises(error):
        read(path)
    assert not is_intact(path)


@pytest.mark.usefixtures("few_bytes")
@pytest.mark.parametrize("name", [*(name for name in READERS if name not in IN_BLOCKS), *SIZES])
def test_a_file_beyond_what_it_can_be_is_refused_before_it_is_read(
    name: str, tmp_path: Path
) -> None:
    read, file_name, error = {**READERS, **SIZES}[name]
    path = tmp_path / file_name
    path.touch(0o600)
    os.truncate(path, 1 << 40)
    with soon(), pytest.raises(error, match="larger than"):
        read(path)


def test_what_grows_or_tells_no_size_is_read_up_to_its_bound(tmp_path: Path) -> None:
    assert read_plain("/proc/self/status").startswith(b"Name:")
    path = tmp_path / "a"
    path.write_bytes(b"x" * (1 << 20))
    assert read_plain(path, most=1 << 20) == path.read_bytes()
    path.write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(NotPlainError, match="larger than the 1 MiB"):
        read_plain(path, most=1 << 20)


def test_text_is_as_python_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    for encoding in ("utf-8", "utf-8-sig"):
        assert read_plain_text(path, encoding=encoding) == path.read_text(encoding=encoding)


def test_a_pipe_that_takes_the_files_place_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    status = os.stat(plain)
    os.mkfifo(tmp_path / "a")
    monkeypatch.setattr(plain_files.os, "stat", lambda path: status)
    with soon(), pytest.raises(NotPlainError, match="pipe"):
        read_plain(tmp_path / "a")


def test_one_that_nobody_caught_is_an_error_of_usage() -> None:
    found = known_failure(NotPlainError("a pipe where a plain file is needed"))
    assert isinstance(found, ConfigError)


@pytest.mark.parametrize("out", [".", "/", ""])
def test_a_folder_where_a_file_is_written_is_an_error_of_usage(out: str) -> None:
    with pytest.raises(ValueError, match="empty name") as caught:
        Path(out).with_name("key.pub")
    assert isinstance(known_failure(caught.value), ConfigError)
    assert main(["bundle", "keygen", "--out", out, "--json"]) == 2


def test_files_of_other_encodings_are_errors_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "names"
    path.write_bytes(b"caf\xe9\n")
    for read, *_ in (SIZES["classes of an export"], SIZES["known hosts"]):
        with pytest.raises(ConfigError):
            read(path)
