"""The pictures that ship: 16 garments of each of 10 classes to learn from, 12 to test on.

    python -m tools.nano.sample CLOTHING.zip

The source is the clothing data set of Alexey Grigorev and contributors, CC0 (public domain).
What ships comes from its train and validation folders; its test folder stays unseen.
"""

from __future__ import annotations

import io
import random
import sys
import zipfile
from pathlib import Path

from PIL import Image

from edgeladder.host.model import nano_model as nano

SHOTS, HELD_OUT, SIDE, QUALITY = 16, 12, 160, 68
_STAMP = (2026, 1, 1, 0, 0, 0)  # the same bytes at every making


def sample(source: Path, target: Path, names: str) -> int:
    """Write the sample; returns its bytes."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as out:
        listed = sorted(name for name in archive.namelist() if not name.endswith("/"))
        for part, kept, count in (("train", "train", SHOTS), ("validation", "test", HELD_OUT)):
            classes = sorted({n.split("/")[1] for n in listed if n.startswith(f"{part}/")})
            for folder in classes:
                members = [n for n in listed if n.startswith(f"{part}/{folder}/")]
                picked = random.Random(folder).sample(members, count)
                for index, name in enumerate(sorted(picked)):
                    place = f"{kept}/{folder}/{index:02d}.jpg"
                    _add(out, place, _smaller(archive.read(name)))
        _add(out, "classes.yaml", names.encode())
    return target.stat().st_size


def _add(out: zipfile.ZipFile, name: str, content: bytes) -> None:
    out.writestr(zipfile.ZipInfo(name, _STAMP), content)


def _smaller(content: bytes) -> bytes:
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    scale = SIDE / min(picture.size)
    if scale < 1:
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    found = io.BytesIO()
    picture.save(found, "JPEG", quality=QUALITY, optimize=True)
    return found.getvalue()


if __name__ == "__main__":
    given = Path(sys.argv[1])
    # names of its own: those of clothing.yaml were chosen on pictures that it tests on
    readable = (Path(__file__).parent / "classes" / "sample.yaml").read_text(encoding="utf-8")
    print(sample(given, nano.folder() / "pictures.zip", readable), "bytes")
