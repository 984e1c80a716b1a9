"""Documents and summaries through tensorflow-datasets: what is prepared is read, or named."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import tensorflow_datasets as tfds

from train.common.data import catalogue
from train.common.lm.data import DocumentConfig
from train.common.pairs.summary_data import SummaryData


class TinyTales(tfds.core.GeneratorBasedBuilder):
    """Tales with titles, without a validation split; one tale is empty."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "For these tests."}

    def _info(self):
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"title": text, "tale": text})
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(40), "test": self._generate_examples(10)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"title": f"T{i}", "tale": " " if i == 3 else f"{count} \N{SNOWMAN} {i}"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("tfds"))
    TinyTales(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_documents_of_a_prepared_data_set(data_dir: str) -> None:
    config = DocumentConfig(source=("tfds:tiny_tales",), column="tale", data_dir=data_dir)
    data = config.load()
    assert {split: len(found) for split, found in data.splits.items()} == {
        "train": 35,  # 40, less the empty one, less a tenth
        "validation": 4,
        "test": 9,
    }
    assert {text.split()[0] for text in data.splits["validation"]} == {"40"}
    assert {text.split()[0] for text in data.splits["test"]} == {"10"}
    assert sum("skipped 1 empty documents" in note for note in data.notes) == 2
    assert any("validation (10%)" in note for note in data.notes)


@pytest.mark.parametrize("column", [None, "author"])
def test_a_text_that_is_not_the_only_one_must_be_named(data_dir: str, column: str | None) -> None:
    config = DocumentConfig(source=("tfds:tiny_tales",), column=column, data_dir=data_dir)
    with pytest.raises(ValueError, match=r"its features are .*title \(Text\)"):
        config.load()


def test_summaries_of_a_prepared_data_set(data_dir: str) -> None:
    options = {"source": "tfds:tiny_tales", "data_dir": data_dir}
    data = SummaryData(**options, source_column=("tale",), target_column=("title",)).load()
    assert len(data.splits["test"]) == 9
    assert all(pair.source.split()[-1] == pair.target[1:] for pair in data.splits["train"])
    with pytest.raises(ValueError, match="expected text features as source"):
        SummaryData(**options).load()


@pytest.mark.parametrize("name", ["aeslc", "xsum", "cnn_dailymail"])
def test_the_catalogues_summaries_say_where_they_come_from(
    name: str, tmp_path: Path, monkeypatch
) -> None:
    def refuse(address, timeout):
        raise OSError("no route")

    monkeypatch.setattr(catalogue.socket, "create_connection", refuse)
    for proxy in catalogue.PROXIES:
        monkeypatch.delenv(proxy, raising=False)
    with pytest.raises(ConnectionError, match="does not answer") as caught:
        SummaryData(source=f"tfds:{name}", data_dir=str(tmp_path)).load()
    assert "download_and_prepare()" in str(caught.value)
