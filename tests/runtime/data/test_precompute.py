"""Pictures and class names to the cache and out again as a step's inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import encode, noise
from safetensors.numpy import load_file
from tiny_tower import TinyBundle

from edgeladder.core.errors import ConfigError, DataError, IntegrityError, StorageError
from edgeladder.runtime.cache.inputs import open_batches, open_reader
from edgeladder.runtime.cache.layout import l2_normalize
from edgeladder.runtime.cache.selection import Selection
from edgeladder.runtime.cache.store import ActivationCache
from edgeladder.runtime.pictures.dataset import open_data, split
from edgeladder.runtime.pictures.decode import decode
from edgeladder.runtime.towers.fill_cache import (
    PrecomputeResult,
    PrecomputeSizes,
    Wanted,
    looked_up,
    precompute,
)
from edgeladder.runtime.towers.runner import TowerSizes
from edgeladder.runtime.towers.tokens import Tokenizer, class_prompts

Make = Callable[..., Path]
SIZES = PrecomputeSizes(
    image=TowerSizes(group=5, batch=2, threads=1), text=TowerSizes(group=6, batch=4, threads=1)
)
WHOLE = PrecomputeSizes(image=TowerSizes(group=5, batch=2, threads=1, whole=True), text=SIZES.text)
FILES = {
    f"{part}/{name}/{index}.png": None
    for part, count in (("train", 6), ("test", 3))
    for name in ("dress", "hat", "shirt")
    for index in range(count)
}


def fill(
    bundle: TinyBundle,
    folder: Path,
    cache: Path,
    *,
    views: int = 0,
    dtype: str = "fp16",
    **options: object,
) -> PrecomputeResult:
    """Precompute a folder with small sizes."""
    data = open_data(folder)
    wanted = Wanted(*split(data, None, 0), views, dtype)
    return precompute(bundle, data, cache, wanted, **{"sizes": SIZES, **options})


def test_first_run_computes_second_run_reuses(
    tiny: TinyBundle, make_folder: Make, tmp_path: Path
) -> None:
    """All new, then nothing; then only what was added, renamed pictures included in the old."""
    folder, cache = make_folder(FILES), tmp_path / "cache"
    calls: list[tuple[int, int, str]] = []
    first = fill(tiny, folder, cache, progress=lambda *call: calls.append(call))
    assert (first.new, first.reused, first.text_new, first.text_reused) == (27, 0, 3, 0)
    assert first.images_per_second > 0 and first.to_dict()["skipped"] == []
    pictures = [call for call in calls if call[2] != "class names"]
    assert pictures[-1][:2] == (27, 27)
    assert [done for done, _, _ in pictures] == sorted(done for done, _, _ in pictures)
    again = fill(tiny, folder, cache)
    assert (again.new, again.reused, again.text_new, again.text_reused) == (0, 27, 0, 3)
    assert (again.selection.train_keys == first.selection.train_keys).all()
    (folder / "train/hat/0.png").rename(folder / "train/hat/renamed.png")
    (folder / "train/hat/more.png").write_bytes(encode(noise(30, 30, seed=99)))
    third = fill(tiny, folder, cache)
    assert (third.new, third.reused) == (1, 27)
    assert not list(cache.glob("work-*"))


def test_what_is_cached_is_looked_up_without_a_tower(
    tiny: TinyBundle, make_folder: Make, tmp_path: Path
) -> None:
    folder, cache = make_folder(FILES), tmp_path / "cache"
    data = open_data(folder)
    wanted = Wanted(*split(data, None, 0), 2)

    def look(most_bytes: int = 1_000_000) -> PrecomputeResult | None:
        return looked_up(tiny, data, cache, wanted, "", most_bytes=most_bytes)

    assert look() is None and not cache.exists()
    fill(tiny, folder, cache, views=1)
    assert look() is None  # the second view is missing
    filled, found = fill(tiny, folder, cache, views=2), look()
    assert found is not None
    assert (found.new, found.reused, found.text_reused, found.skipped) == (0, 63, 3, [])
    for name in ("train_keys", "train_labels", "test_keys", "test_labels", "text_keys"):
        expected = getattr(filled.selection, name)
        np.testing.assert_array_equal(getattr(found.selection, name), expected)
    assert look(most_bytes=1000) is None  # too many pictures to read for it
    (folder / "train/hat/0.png").write_bytes(b"not a picture")
    assert look() is None


def test_inputs_are_what_the_towers_give(
    tiny: TinyBundle, make_folder: Make, tmp_path: Path
) -> None:
    """Pictures and class names through decoding, towers, cache and windows, against numpy."""
    described = b"hat: {name: red hat, aliases: [the hat]}\ntemplates: ['a photo of the {}', '{}']"
    folder = make_folder({**FILES, "classes.yaml": described})
    data = open_data(folder)
    train, test = split(data, None, 0)
    result = fill(tiny, folder, tmp_path / "cache")
    result.selection.save(tmp_path / "selection.safetensors")
    selection = Selection.load(tmp_path / "selection.safetensors")
    assert selection.class_names == ["dress", "red hat", "shirt"] and selection.views == 0
    reader = open_reader(tiny, tmp_path / "cache", selection)
    labels_alone = selection.without_pictures()
    assert labels_alone.views == 0 and labels_alone.train_keys.base is None
    assert labels_alone.train_keys.size == labels_alone.test_keys.size == 0
    assert labels_alone.train_labels is selection.train_labels  # they are still asked for
    for side, pictures in (("train", train), ("test", test)):
        windows = list(reader.windows(side, 4))
        pixels = np.stack([decode(p.read(), tiny.manifest.preprocess) for p in pictures])
        expected = tiny.image_reference(pixels)
        taps = np.concatenate([w.image_taps(0, len(w.labels))[0] for w in windows], axis=2)
        stacked = np.stack([expected["tap_0"], expected["tap_1"]]).transpose(0, 2, 1, 3)
        np.testing.assert_allclose(taps, stacked, atol=1e-2)
        embeddings = np.concatenate([w.image_embedding for w in windows])
        np.testing.assert_allclose(embeddings, l2_normalize(expected["embedding"]), atol=5e-3)
        extra = np.concatenate([w.image_extra["image_embedding_pre"] for w in windows])
        length = np.linalg.norm(expected["embedding"], axis=1, keepdims=True)
        np.testing.assert_allclose(extra, expected["embedding_pre"] / length, atol=1e-2)
        labels = np.concatenate([w.labels for w in windows])
        assert [data.classes[label] for label in labels] == [p.label for p in pictures]
        assert labels.dtype == np.int64
    prompts = class_prompts(data.names, ["a photo of the {}", "{}"])
    assert [len(texts) for texts in prompts] == [2, 4, 2]
    tokenizer = Tokenizer.from_bundle(tiny)
    window = next(reader.windows("test", 4))
    for index, texts in enumerate(prompts):
        expected = tiny.text_reference(tokenizer.encode(texts))
        mean = l2_normalize(l2_normalize(expected["embedding"]).mean(axis=0)[None])[0]
        np.testing.assert_allclose(window.text_embedding[:][index], mean, atol=5e-3)
        (taps,) = window.text_taps(index, index + 1)
        np.testing.assert_allclose(taps[0, :, 0], expected["text_tap_0"].mean(axis=0), atol=1e-2)
    reader.close()


def test_batches_resume_exactly_and_read_views(
    tiny: TinyBundle, make_folder: Make, tmp_path: Path
) -> None:
    """A step's inputs after a resume are the bits of an uninterrupted run's; views are cached."""
    folder = make_folder(FILES)
    result = fill(tiny, folder, tmp_path / "cache", views=2)
    assert result.new == 18 * 3 + 9 and result.selection.views == 2

    def batches(keep: int) -> object:
        return open_batches(
            tiny, tmp_path / "cache", result.selection, batch=4, seed=3, keep_bytes=keep
        )

    one, two = batches(1 << 20), batches(0)
    assert one.classes == 3 and one.steps_per_epoch == 5
    for _ in range(3):
        one.next()
    two.load_state(one.state())
    different_views = set()
    for step in range(8):
        a, b = one.next(), two.next()
        for x, y in (
            (a.labels, b.labels),
            (a.image_embedding, b.image_embedding),
            (a.image_taps(0, 4)[0], b.image_taps(0, 4)[0]),
            (a.text_taps(0, 3)[0], b.text_taps(0, 3)[0]),
        ):
            assert (x == y).all()
        whole = a.image_taps(0, 4)[0]
        assert (whole[:, :, 1:3] == a.image_taps(1, 3)[0]).all()
        different_views.update(row.tobytes() for row in a.image_embedding)
        if step == 4:
            one.trim()
    assert len(different_views) > 18  # more than one view of some pictures was drawn
    assert one.next().text_taps(0, 3)[0] is one.next().text_taps(0, 3)[0]  # kept between steps
    assert two.next().text_taps(0, 3)[0] is not two.next().text_taps(0, 3)[0]
    one.close()
    two.close()


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_sizes_do_not_change_what_is_cached(
    tiny: TinyBundle, make_folder: Make, tmp_path: Path, dtype: str
) -> None:
    """Whole or by segment, any group and batch: the same keys, and the same bytes under each."""
    folder = make_folder(FILES)
    small = fill(tiny, folder, tmp_path / "a", dtype=dtype)
    large = fill(
        tiny,
        folder,
        tmp_path / "b",
        dtype=dtype,
        sizes=PrecomputeSizes(
            image=TowerSizes(group=64, batch=8, threads=1, whole=True),
            text=TowerSizes(group=64, batch=8, threads=1, whole=True),
        ),
    )
    assert (small.selection.train_keys == large.selection.train_keys).all()
    assert (small.selection.text_keys == large.selection.text_keys).all()
    left, right = cached(tmp_path / "a"), cached(tmp_path / "b")
    assert left == right and len(left) == 27 + 3


def test_a_picture_that_was_reduced_for_a_budget_is_not_taken_for_the_whole_one(
    tiny: TinyBundle, make_folder: Make, tmp_path: Path
) -> None:
    """Each budget finds its own samples; a small one takes whole ones where they are there."""
    large = encode(noise(400, 300, seed=9), "JPEG", quality=90)
    files = {f"{part}/{name}.jpg": large for part, name in (("train", "a/0"), ("test", "a/1"))}
    folder = make_folder({**files, "train/b/0.png": None})
    small = dataclasses.replace(SIZES, max_pixels=40_000)
    first = fill(tiny, folder, tmp_path / "cache", sizes=small, views=1)
    again = fill(tiny, folder, tmp_path / "cache", sizes=small, views=1)
    assert again.new == 0 and (again.selection.train_keys == first.selection.train_keys).all()
    whole = fill(tiny, folder, tmp_path / "cache", views=1)
    alone = fill(tiny, folder, tmp_path / "alone", views=1)
    assert (
        whole.new == 2
        and (whole.selection.train_keys[:, 0] != first.selection.train_keys[:, 0]).any()
    )
    for keys in (whole.selection.train_keys, whole.selection.test_keys):
        wanted = {key.tobytes() for key in keys.reshape(-1, keys.shape[-1])}
        there, fresh = cached(tmp_path / "cache"), cached(tmp_path / "alone")
        assert all(there[name] == fresh[name] for name in fresh if name[1] in wanted)
    assert (alone.selection.train_keys == whole.selection.train_keys).all()
    richer = fill(tiny, folder, tmp_path / "cache", sizes=small, views=1)
    assert (richer.selection.train_keys == whole.selection.train_keys).all() and richer.new == 0


def cached(folder: Path) -> dict[tuple[str, bytes], bytes]:
    """All that is stored of every sample, by store and key."""
    found: dict[tuple[str, bytes], bytes] = {}
    for path in folder.rglob("0*.safetensors"):
        columns = load_file(path)
        for row, name in enumerate(columns["keys"]):
            content = b"".join(columns[field][row].tobytes() for field in sorted(columns))
            found[path.parent.name, name.tobytes()] = content
    return found


def test_few_bad_pictures_are_skipped_and_named(
    tiny: TinyBundle, make_folder: Make, tmp_path: Path
) -> None:
    """Up to 5 %: the others are used, and the result says which and why."""
    whole = encode(noise(60, 60), "JPEG")
    files: dict[str, bytes | None] = {f"train/hat/{i}.png": None for i in range(20)}
    files |= {f"train/dress/{i}.png": None for i in range(20)}
    files |= {"train/hat/cut.jpg": whole[: len(whole) // 2], "train/hat/text.png": b"not at all"}
    result = fill(tiny, make_folder(files), tmp_path / "cache")
    assert result.new == 40 and len(result.selection.train_labels) == 40
    assert [item["path"] for item in result.skipped] == ["train/hat/cut.jpg", "train/hat/text.png"]
    assert "damaged" in result.skipped[0]["reason"]
    assert "not a picture" in result.skipped[1]["reason"]
    assert result.selection.skipped == result.to_dict()["skipped"] == result.skipped


def test_many_bad_pictures_are_an_error(
    tiny: TinyBundle, make_folder: Make, tmp_path: Path
) -> None:
    """Beyond 5 %: exit 4, naming all of them; what was computed is used when they are replaced."""
    files: dict[str, bytes | None] = {f"train/hat/{i:02}.png": None for i in range(20)}
    files |= {f"train/hat/bad{i}.png": b"x" for i in range(3)}
    folder = make_folder(files)
    with pytest.raises(DataError, match="3 of 23 pictures cannot be read") as caught:
        fill(tiny, folder, tmp_path / "cache")
    assert caught.value.exit_code == 4
    for index in range(3):
        assert f"bad{index}.png: not a picture" in str(caught.value.where)
    assert "what is cached is kept" in str(caught.value.remedy)
    for index in range(3):
        (folder / f"train/hat/bad{index}.png").unlink()
    again = fill(tiny, folder, tmp_path / "cache")
    assert again.reused >= 15 and again.new + again.reused == 20


def test_unreadable_pictures_are_counted_to_the_end_of_a_bounded_list(
    tiny: TinyBundle, make_folder: Make, tmp_path: Path
) -> None:
    files: dict[str, bytes | None] = {f"train/hat/{i:02}.png": b"x" for i in range(30)}
    with pytest.raises(DataError, match="at least 20 of 30 pictures") as caught:
        fill(tiny, make_folder(files), tmp_path / "cache")
    assert str(caught.value.where).count("not a picture") == 20


def test_the_last_word_says_what_was_there_and_what_is_new(
    tiny: TinyBundle, make_folder: Make, tmp_path: Path
) -> None:
    files: dict[str, bytes | None] = {f"train/hat/{i}.png": None for i in range(4)}
    files |= {f"train/dress/{i}.png": None for i in range(4)}
    folder, cache = make_folder(files), tmp_path / "cache"

    def told() -> list[str]:
        seen: list[tuple[int, int, str]] = []
        fill(tiny, folder, cache, progress=lambda *event: seen.append(event))
        ends = [note for done, total, note in seen if done == total and note != "class names"]
        assert len(ends) == 1 and ends[0] == seen[-1][2]
        return ends

    assert told() == ["0 cached, 8 new"]
    assert told() == ["8 cached, nothing new"]
    (folder / "train/hat/9.png").write_bytes(encode(noise(40, 40, seed=9), "PNG"))
    assert told() == ["8 cached, 1 new"]


def test_a_class_lost_to_bad_pictures(tiny: TinyBundle, make_folder: Make, tmp_path: Path) -> None:
    """Few enough to skip, but all of one class: an error that names it."""
    files: dict[str, bytes | None] = {f"train/hat/{i}.png": None for i in range(30)}
    files["train/dress/only.png"] = b"x"
    with pytest.raises(DataError, match="class 'dress' can be read") as caught:
        fill(tiny, make_folder(files), tmp_path / "cache")
    assert "only.png" in str(caught.value.where)


def test_an_adapters_classes_give_the_labels(make_folder: Make) -> None:
    """In the order given, classes without pictures included; unknown ones are refused."""
    data = open_data(make_folder(FILES))
    found = data.labels(data.pictures, ["shirt", "coat", "hat", "dress"])
    assert sorted(set(found.tolist())) == [0, 2, 3]
    with pytest.raises(DataError, match="'shirt' is not among the 2 known classes"):
        data.labels(data.pictures, ["dress", "hat"])


class StopError(Exception):
    """Raised by a test's on_group."""


@pytest.mark.parametrize("sizes", [SIZES, WHOLE], ids=["streamed", "beside-decoding"])
def test_a_stop_keeps_every_group(
    tiny: TinyBundle, make_folder: Make, tmp_path: Path, sizes: PrecomputeSizes
) -> None:
    """The supervisor's stop comes between groups; the next run goes on from there."""
    folder, groups = make_folder(FILES), 0

    def stop() -> None:
        nonlocal groups
        groups += 1
        if groups == 6:  # three of class names (6 prompts each), three of pictures
            raise StopError

    with pytest.raises(StopError):
        fill(tiny, folder, tmp_path / "cache", on_group=stop, sizes=sizes)
    assert not list((tmp_path / "cache").glob("work-*"))
    again = fill(tiny, folder, tmp_path / "cache")
    assert again.text_reused == 3 and again.reused == 15 and again.new == 12


@pytest.mark.parametrize("sizes", [SIZES, WHOLE], ids=["streamed", "beside-decoding"])
def test_no_space_in_the_middle(
    tiny: TinyBundle,
    make_folder: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sizes: PrecomputeSizes,
) -> None:
    """The disk fills up at the third group: a StorageError; the two before it are kept."""
    from edgeladder.runtime.cache import store as module

    real, calls = module.write_shard, 0

    def write(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise StorageError("no space left on the device", where="cache", remedy="free some")
        return real(*arguments)

    folder = make_folder(FILES)
    monkeypatch.setattr(module, "write_shard", write)
    with pytest.raises(StorageError):
        fill(tiny, folder, tmp_path / "cache", sizes=sizes)
    assert not list((tmp_path / "cache").glob("work-*"))
    monkeypatch.setattr(module, "write_shard", real)
    again = fill(tiny, folder, tmp_path / "cache")
    assert again.text_reused == 3 and again.reused == 15 and again.new == 12


def test_missing_samples_and_selections(
    tiny: TinyBundle, make_folder: Make, tmp_path: Path
) -> None:
    """A cache that lost samples, and a selection that is none: integrity errors with remedies."""
    result = fill(tiny, make_folder(FILES), tmp_path / "cache")
    for path in (tmp_path / "cache").glob("image-*/0*.safetensors"):
        path.unlink()
    with pytest.raises(IntegrityError, match="18 of 18 samples are not in the cache") as caught:
        open_reader(tiny, tmp_path / "cache", result.selection)
    assert "edgeladder precompute" in str(caught.value.remedy)
    (tmp_path / "broken").write_bytes(b"x" * 30)
    for path in (tmp_path / "broken", tmp_path / "absent"):
        with pytest.raises(IntegrityError, match="selection"):
            Selection.load(path)


def test_a_ladder_that_wants_what_no_tower_gives(
    tiny: TinyBundle, make_folder: Make, tmp_path: Path
) -> None:
    """No embedding before a projection: said, instead of a KeyError in the first step."""
    result = fill(tiny, make_folder(FILES), tmp_path / "cache")
    cache = ActivationCache.open(tmp_path / "cache", tiny, "text")
    with pytest.raises(ConfigError, match="no embedding before a projection"):
        cache.pre_embeddings(cache.find(result.selection.text_keys))


def test_int8_runs_through(tiny: TinyBundle, make_folder: Make, tmp_path: Path) -> None:
    """The 8-bit store gives nearly the inputs of the 16-bit one."""
    folder = make_folder(FILES)
    half = fill(tiny, folder, tmp_path / "cache").selection
    eight = fill(tiny, folder, tmp_path / "cache", dtype="int8").selection
    assert eight.dtype == "int8"
    one = next(open_reader(tiny, tmp_path / "cache", half).windows("train", 18))
    two = next(open_reader(tiny, tmp_path / "cache", eight).windows("train", 18))
    assert (one.image_embedding == two.image_embedding).all()
    taps = one.image_taps(0, 18)[0]
    assert 0 < np.abs(taps - two.image_taps(0, 18)[0]).max() < 0.02 * np.abs(taps).max()
