"""`tfds:<name>`: read what is prepared; without a network say what to do, quickly."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds

from train.common.data import catalogue
from train.common.extras import MissingExtraError
from train.common.text.loading import TextDataConfig

WORDS = ("good", "bad", "middling \N{SNOWMAN}")


class TinyNews(tfds.core.GeneratorBasedBuilder):
    """Titles and bodies, without a validation split; one record has no label."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "For these tests."}

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "title": tfds.features.Text(),
                    "body": tfds.features.Text(),
                    "topic": tfds.features.ClassLabel(names=["x", "y", "z"]),
                    "stars": tfds.features.Scalar(dtype=np.int32),
                }
            ),
            supervised_keys=("body", "topic"),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(40), "test": self._generate_examples(10)}

    def _generate_examples(self, count):
        for i in range(count):
            label = -1 if i == 3 else i % 3
            yield i, {"title": f"T{i}", "body": f"{WORDS[i % 3]} {i}", "topic": label, "stars": i}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    TinyNews(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


def test_a_prepared_data_set_is_read_without_tensorflow(data_dir: Path) -> None:
    data = TextDataConfig(source="tfds:tiny_news", data_dir=str(data_dir)).load()
    assert data.labels == ("x", "y", "z")
    assert {split: len(e) for split, e in data.splits.items()} == {
        "train": 35,  # 40, less the one without a label, less a tenth
        "validation": 4,
        "test": 9,
    }
    for examples in data.splits.values():
        assert all(text.startswith(WORDS[label]) for text, label in examples)
    assert any("held out of the training split" in note for note in data.notes)
    assert any("2 records without a label" in note for note in data.notes)


def test_columns_can_be_chosen(data_dir: Path) -> None:
    data = TextDataConfig(
        source="tfds:tiny_news", data_dir=str(data_dir), text_column=("title", "body")
    ).load()
    assert all(text.startswith("T") and WORDS[label] in text for text, label in data.splits["test"])


@pytest.mark.parametrize("options", [{"label_column": "stars"}, {"text_column": ("nothing",)}])
def test_unsuitable_columns_are_listed(data_dir: Path, options: dict) -> None:
    with pytest.raises(ValueError, match=r"its features are title \(Text\)"):
        TextDataConfig(source="tfds:tiny_news", data_dir=str(data_dir), **options).load()


def test_an_unknown_name_gives_close_ones_in_a_short_message(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no data set 'imdb_review'; close names: imdb_reviews$"):
        TextDataConfig(source="tfds:imdb_review", data_dir=str(tmp_path)).load()


@pytest.mark.parametrize(
    ("name", "size"), [("imdb_reviews", "80.2 MiB"), ("ag_news_subset", "11.2 MiB")]
)
def test_without_a_network_it_says_what_to_do(tmp_path: Path, monkeypatch, name, size) -> None:
    waits = []

    def refuse(address, timeout):
        waits.append(timeout)
        raise OSError("no network here")

    monkeypatch.setattr(catalogue.socket, "create_connection", refuse)
    for proxy in catalogue.PROXIES:
        monkeypatch.delenv(proxy, raising=False)
    with pytest.raises(ConnectionError) as caught:
        TextDataConfig(source=f"tfds:{name}", data_dir=str(tmp_path)).load()
    assert 0 < sum(waits) < 5  # seconds, were nobody to answer
    message = str(caught.value)
    for part in ("does not answer", "to fetch: http", f"goes to:  {tmp_path}", "python -c"):
        assert part in message
    assert f"size:     {size}" in message


def test_a_failing_download_gives_the_same_recipe(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")

    def fail(self, **_):
        raise ConnectionError("the proxy refused")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(ConnectionError, match=r"(?s)not prepared in .*the proxy refused"):
        TextDataConfig(source="tfds:imdb_reviews", data_dir=str(tmp_path)).load()


def test_what_needs_tensorflow_names_the_extra(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")

    def fail(self, **_):
        raise ModuleNotFoundError("No module named 'tensorflow'")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(MissingExtraError, match=r"attnjax\[tf\]"):
        TextDataConfig(source="tfds:imdb_reviews", data_dir=str(tmp_path)).load()
