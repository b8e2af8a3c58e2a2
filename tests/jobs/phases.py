"""Phases the supervisor is tested with: each misbehaves in its own way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from edgeladder.core.errors import DataError

MB = 1_000_000
HELD = []


def hold(count_bytes):
    """Memory that is really resident."""
    HELD.append(bytearray(os.urandom(4096)) * (count_bytes // 4096))


def quiet(values, control):
    hold(values.get("hold", 0))
    time.sleep(0.2)
    return "done", {"answer": 42, "pid": os.getpid(), "sizes": values["sizes"]}


def leak(values, control):
    """Grows a little every step, checkpoints when told, leaves when told."""
    steps = values["steps"]
    path = values["state"]
    step = int(Path(path).read_text()) if os.path.exists(path) else 0
    careful = False

    def save():
        with open(path, "w") as stream:
            stream.write(str(step))
        control.tell("checkpoint", step=step)

    heard = []
    while step < steps:
        for order in control.take():
            heard.append(order)
            careful = careful or order in ("checkpoint", "halve")
            if order in ("restart", "stop"):
                save()
                return order, {}
        hold(values["leak"])
        time.sleep(0.005)
        step += 1
        control.tell("progress", step=step, steps=steps)
        if careful:
            save()
    save()
    return "done", {"step": step, "heard": heard}


def explode(values, control):
    """Takes far more than the limit allows, in one go, faster than any sampling."""
    control.tell("progress", step=7, steps=9)
    hold(values["take"])
    return "done", {"took": values["take"]}


def once(values, control):
    """Explodes in its first life only."""
    path = values["state"]
    if not os.path.exists(path):
        open(path, "w").close()
        hold(values["take"])
    return "done", {"sizes": values["sizes"]}


def wait_for_stop(values, control):
    control.tell("progress", step=1, steps=2)
    while "stop" not in control.take():
        time.sleep(0.01)
    open(values["state"], "w").close()
    return "stop", {}


def family(values, control):
    """A child of the worker holds the memory."""
    code = f"import time; held = bytearray(b'x') * {values['hold']}; time.sleep(0.7)"
    subprocess.run([sys.executable, "-c", code], check=True)
    return "done", {}


def bad_data(values, control):
    raise DataError("no pictures", where="here", remedy="add some")


def crash(values, control):
    print("about to fall", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGSEGV)


def no_memory(values, control):
    raise MemoryError("cannot allocate 9 GB")
