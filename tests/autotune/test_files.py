"""Tables of block sizes as files: nothing that was written is lost, and nothing wrong is used."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from attnjax import autotune
from attnjax.autotune import Measurement, files
from attnjax.ops.tuning import Key


def measurement(T: int = 512, block_q: int = 256, device: str = "a chip") -> Measurement:
    key = Key(device, "blockwise", (("T", T), ("mask", "Causal"), ("stats", False)))
    return Measurement(key, {"block_q": block_q}, 0.5, 1.0, True, {}, {})


def content(path: Path) -> Any:
    return json.loads(path.read_text())


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "blocks.json"
    autotune.save(path, measurement(), measurement(1024, 512))
    table = autotune.load(path)
    found = (measurement(), measurement(1024, 512))
    assert table.entries == {m.key: dict(m.options) for m in found}
    assert table.name == str(path)
    assert content(path)["schema"] == "attnjax.autotune/1"
    assert content(path)["entries"][0]["measured"]["default_milliseconds"] == 1000
    assert [p.name for p in tmp_path.iterdir()] == ["blocks.json"]


def test_the_order_of_saving_does_not_show(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "ab"]
    some = [measurement(T) for T in (512, 64, 4096)]
    for path, order in zip(paths, (some, some[::-1]), strict=True):
        for found in order:
            autotune.save(path, found)
    assert paths[0].read_text() == paths[1].read_text()


def test_other_entries_and_notes_stay(tmp_path: Path) -> None:
    path = tmp_path / "blocks.json"
    autotune.save(path, measurement(), measurement(1024))
    written = content(path)
    written["entries"][0]["note"] = "checked by hand"
    written["entries"].append(
        {"device": "x", "implementation": "another", "call": {"n": 1}, "options": {"depth": 3}}
    )
    path.write_text(json.dumps(written))
    autotune.save(path, measurement(64), measurement(1024))
    entries = {json.dumps(e["call"]): e for e in content(path)["entries"]}
    assert len(entries) == 4
    assert [e["note"] for e in entries.values() if "note" in e] == ["checked by hand"]
    assert entries['{"n": 1}']["options"] == {"depth": 3}


def test_an_entry_is_replaced_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "blocks.json"
    autotune.save(path, measurement(block_q=64))
    written = content(path)
    written["entries"][0]["note"] = "mine"
    path.write_text(json.dumps(written))
    before = path.read_text()
    with pytest.raises(ValueError, match=r"it has block_q=64 for blockwise on a chip \(T 512.*256"):
        autotune.save(path, measurement(64), measurement(block_q=256))
    assert path.read_text() == before
    autotune.save(path, measurement(block_q=256), replace=True)
    (entry,) = content(path)["entries"]
    assert entry["options"] == {"block_q": 256} and entry["note"] == "mine"
    autotune.save(path, measurement(block_q=256))  # the same again is no conflict


ENTRY = {"device": "x", "implementation": "blockwise", "call": {"T": 1}, "options": {"block_q": 8}}
WRONG: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "expected a table as JSON"),
    "another schema": ({"schema": "attnjax.autotune/9"}, "schema 'attnjax.autotune/1', got"),
    "no schema": ([], "expected the schema 'attnjax.autotune/1', got None"),
    "no entries": ({"schema": "attnjax.autotune/1"}, "expected a list of entries, got NoneType"),
    "an entry without device": ([{**ENTRY, "device": None}], "entry 0: expected 'device'"),
    "an entry that is none": ([ENTRY, 3], "entry 1: expected 'device', of type str"),
    "options of no number": ([{**ENTRY, "options": {"block_q": "8"}}], "positive integer, got '8'"),
    "a negative option": ([{**ENTRY, "options": {"block_q": -8}}], "positive integer, got -8"),
    "an unknown option": (
        [{**ENTRY, "options": {"blocks": 8}}],
        "options of blockwise among block_k, block_q, streams; got blocks",
    ),
    "two for one call": ([ENTRY, ENTRY], r"one entry for blockwise on x \(T 1\), got two"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_no_table_is_refused_and_kept(name: str, tmp_path: Path) -> None:
    written, message = WRONG[name]
    path = tmp_path / "blocks.json"
    if isinstance(written, list) and written:
        written = {"schema": "attnjax.autotune/1", "entries": written}
    path.write_text(written if isinstance(written, str) else json.dumps(written))
    before = path.read_text()
    for attempt in (lambda: autotune.load(path), lambda: autotune.save(path, measurement())):
        with pytest.raises(ValueError, match=message) as caught:
            attempt()
        assert str(path) in str(caught.value)
    with pytest.raises(ValueError, match=message), autotune.use(path):
        pytest.fail("a wrong table is in use")
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["blocks.json"]


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"), autotune.use(tmp_path / "nowhere"):
        pytest.fail("no table is in use")


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "blocks.json"
    threads = [
        threading.Thread(target=autotune.save, args=(path, measurement(1 << n))) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(autotune.load(path).entries) == 8


def test_a_lock_left_behind_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "blocks.json.lock").touch()
    monkeypatch.setattr(files, "_PATIENCE", 0.1)
    with pytest.raises(TimeoutError, match=r"blocks\.json\.lock is there.*remove it"):
        autotune.save(tmp_path / "blocks.json", measurement())
    assert not (tmp_path / "blocks.json").exists()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "blocks.json"
    autotune.save(path, measurement())
    before = path.read_text()

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        autotune.save(path, measurement(64))
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["blocks.json"]
