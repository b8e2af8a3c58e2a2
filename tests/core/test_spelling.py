"""What somebody meant: keys by initials, by a word, from another section; sizes without a unit."""

from __future__ import annotations

import pytest

from edgeladder.core.errors import ConfigError
from edgeladder.core.sizes import parse_size
from edgeladder.core.yaml_config import load_profile


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("train.lr=1", "'train.learning_rate'"),
        ("lr=1", "'train.learning_rate'"),
        ("train.wd=1", "'train.weight_decay'"),
        ("train.decay=1", "'train.weight_decay'"),
        ("train.bs=1", "'train.batch'"),
        ("optimizer.lr=1", "'train.learning_rate'"),
        ("train.width=8", "'ladder.width'"),
        ("train.bach=1", "'batch'"),
    ],
)
def test_a_wrong_setting_names_the_key_that_was_meant(setting: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile("default", [setting])
    assert f"did you mean {key}" in caught.value.message


def test_a_key_like_none_of_ours_gets_no_guess() -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile("default", ["train.qqqq=1"])
    assert "did you mean" not in caught.value.message


@pytest.mark.parametrize(("text", "meant"), [("4", "4GB"), ("192", "192MB"), (" 2 ", "2GB")])
def test_a_size_without_its_unit_is_refused_with_the_one_that_was_meant(
    text: str, meant: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_size(text)
    assert meant in (caught.value.remedy or "") and "kB" not in caught.value.message


@pytest.mark.parametrize(("text", "size"), [("4B", 4), ("1000000", 10**6), ("0.5GB", 500_000_000)])
def test_sizes_that_are_meant_as_they_stand(text: str, size: int) -> None:
    assert parse_size(text) == size
