"""What goes back to the kernel, and that nothing which is needed goes with it."""

import json
import subprocess
import sys

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
