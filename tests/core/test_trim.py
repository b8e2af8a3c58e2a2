"""What goes back to the kernel, and that nothing which is needed goes with it."""

import json
import os
import subprocess
import sys

from edgeladder.jobs.child import WORKER_ENVIRONMENT

MB = 1_000_000
CODE = """
import json, os
import numpy as np
from edgeladder.core import onnx_graph, protobuf
from edgeladder.budget import meter
from edgeladder.runtime.session import open_plain
from edgeladder.core.trim import drop_clean_pages, trim_heap
model = onnx_graph.one_node_model("Identity", protobuf.FLOAT, protobuf.FLOAT)
session = open_plain(model)
values = np.arange(5, dtype=np.float32)
before = meter.resident(os.getpid())
dropped = drop_clean_pages()
after = meter.resident(os.getpid())
assert (session.run(None, {"x": values})[0] == values).all()
import decimal, email.message  # code that was dropped, and code that never was there
held = [bytes(1000) for _ in range(100_000)]
del held
trim_heap()
settled = meter.resident(os.getpid())
print(json.dumps([before, after, dropped, settled]))
"""


def test_start_up_code_goes_and_comes_back():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after, dropped, settled = json.loads(done.stdout)
    assert dropped > 0 and before - after > 15 * MB
    assert settled < before


FAULTS = """
import json, resource
from edgeladder.core.trim import keep_freed_heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        buffers = [bytearray(300_000) for _ in range(3)]
        del buffers
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

fresh = faults()
told = keep_freed_heap(4 << 20)
faults()  # the heap grows once
print(json.dumps([told, fresh, faults()]))
"""


def test_a_loop_that_takes_the_same_buffers_keeps_their_pages():
    environment = {**os.environ, **WORKER_ENVIRONMENT}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    told, fresh, kept = json.loads(done.stdout)
    assert told, "this test's machine has glibc"
    assert fresh > 50 * 3 * 70, "as workers begin, each buffer's pages are asked for anew"
    assert kept < fresh / 100
