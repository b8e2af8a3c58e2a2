"""Phases the supervisor is tested with: each misbehaves in its own way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from edgeladder.core.errors import DataError
from edgeladder.core.events import CheckpointWritten, Decoding, Progress

MB = 1_000_000
HELD = []


def hold(count_bytes):
    """Memory that is really resident."""
    HELD.append(bytearray(os.urandom(4096)) * (count_bytes // 4096))


def quiet(order, control):
    hold(order.values.get("hold", 0))
    time.sleep(0.2)
    return "done", {"answer": 42, "pid": os.getpid(), "sizes": order.sizes.sizes()}


def leak(order, control):
    """Grows a little every step, checkpoints when told, leaves when told."""
    steps = order.values["steps"]
    path = order.values["state"]
    step = int(Path(path).read_text()) if os.path.exists(path) else 0
    careful = False

    def save():
        with open(path, "w") as stream:
            stream.write(str(step))
        control.tell(CheckpointWritten(step=step))

    heard = []
    while step < steps:
        for told in control.take():
            heard.append(told)
            careful = careful or told in ("checkpoint", "halve")
            if told in ("restart", "stop"):
                save()
                return told, {}
        hold(order.values["leak"])
        time.sleep(0.005)
        step += 1
        control.tell(Progress(step=step, steps=steps))
        if careful:
            save()
    save()
    return "done", {"step": step, "heard": heard}


def stumble(order, control):
    """Decodes pictures one by one; one of them takes more memory than there is."""
    seen = []
    for path in order.values["pictures"]:
        if path in order.avoid:
            continue
        control.tell(Decoding(path=path))
        if path == order.values["bomb"]:
            hold(4000 * MB)
        seen.append(path)
    control.tell(Decoding(path=""))
    return "done", {"seen": seen, "batch": order.sizes.batch}


def explode(order, control):
    """Takes far more than the limit allows, in one go, faster than any sampling."""
    control.tell(Progress(step=7, steps=9))
    hold(order.values["take"])
    return "done", {"took": order.values["take"]}


def once(order, control):
    """Explodes in its first life only."""
    path = order.values["state"]
    if not os.path.exists(path):
        open(path, "w").close()
        hold(order.values["take"])
    return "done", {"sizes": order.sizes.sizes()}


def wait_for_stop(order, control):
    control.tell(Progress(step=1, steps=2))
    open(order.values["state"] + ".ready", "w").close()
    while "stop" not in control.take():
        time.sleep(0.01)
    open(order.values["state"], "w").close()
    return "stop", {}


def deaf(order, control):
    """Never asks what it was told."""
    open(order.values["ready"], "w").close()
    time.sleep(60)
    return "done", {}


def busy(order, control):
    """C calls that each keep the interpreter to themselves for a while."""
    open(order.values["ready"], "w").close()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        sum(range(2_000_000))
    return "done", {}


def family(order, control):
    """A child of the worker holds the memory."""
    code = f"import time; held = bytearray(b'x') * {order.values['hold']}; time.sleep(0.7)"
    subprocess.run([sys.executable, "-c", code], check=True)
    return "done", {}


def bad_data(order, control):
    raise DataError("no pictures", where="here", remedy="add some")


def crash(order, control):
    print("about to fall", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGSEGV)


def no_memory(order, control):
    raise MemoryError("cannot allocate 9 GB")
