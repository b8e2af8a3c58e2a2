"""Which engines this Python environment can run, and whether two packages fight over one module.

`onnxruntime` and `onnxruntime-training-cpu` both install the module `onnxruntime`; what was
written last wins. At one version the two wheels differ only in the compiled module, and pip
writes the training build last when it is asked for `edgeladder[ort-training]`: that is a whole
environment, whose `onnxruntime` can do all that the stock one can. Any other mixture is not, and
is found here by comparing what lies on the disk with what each package says it installed.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

from edgeladder.core.errors import ConfigError

if TYPE_CHECKING:
    from importlib import metadata

STOCK = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
TRAINING = ("onnxruntime-training", "onnxruntime-training-cpu")
TRAINING_REQUIREMENT = "onnxruntime-training-cpu==1.19.2"
_WHERE = "this Python environment"


def installed(names: tuple[str, ...]) -> list[metadata.Distribution]:
    """The distributions of these names that are installed here."""
    from importlib import metadata  # here: it costs a training worker 3 MB that it need not pay

    found = []
    for name in names:
        try:
            found.append(metadata.distribution(name))
        except metadata.PackageNotFoundError:
            continue
    return found


def damaged(distribution: metadata.Distribution) -> list[str]:
    """Files of the `onnxruntime` module that are not what the distribution wrote (by size)."""
    wrong = []
    for file in distribution.files or []:
        if file.parts[0] != "onnxruntime" or file.size is None:
            continue
        try:
            size = os.path.getsize(str(file.locate()))
        except OSError:
            size = -1
        if size != file.size:
            wrong.append(str(file))
    return wrong


def check_environment() -> None:
    """Refuse an environment whose `onnxruntime` module is a mixture of packages, or missing.

    Raises:
        ConfigError: with the commands that repair it.
    """
    stock, training = installed(STOCK), installed(TRAINING)
    together = [*stock, *training]
    if not together:
        if importlib.util.find_spec("onnxruntime") is None:
            raise ConfigError(
                "onnxruntime is not installed", where=_WHERE, remedy="pip install onnxruntime"
            )
        return  # built from source, or put on the path by hand
    if len(together) == 1 or (len(training) == 1 and not damaged(training[0])):
        return
    names = [item.metadata["Name"] for item in together]
    if training:
        keep = f"onnxruntime==1.19.2 && pip install --no-deps {TRAINING_REQUIREMENT}"
    else:  # who installed a build with a GPU's provider wants that one; the plain one came along
        others = [name for name in names if name != "onnxruntime"]
        keep = f"--no-deps {others[0]}=={_version(others[0], together)}"
    raise ConfigError(
        f"{' and '.join(names)} overwrite each other's `onnxruntime` module",
        where=_WHERE,
        remedy=f"pip uninstall -y {' '.join(names)} && pip install " + keep,
    )


def _version(name: str, among: list[metadata.Distribution]) -> str:
    return next(item.version for item in among if item.metadata["Name"] == name)


def installed_engines() -> list[str]:
    """Engines that can run here, the preferred one last: `stock`, then `ort-training`."""
    if importlib.util.find_spec("onnxruntime") is None:
        return []
    return ["stock", "ort-training"] if installed(TRAINING) else ["stock"]
