"""Text and labels through tensorflow-datasets: our builtin corpus and the public catalogue."""

from __future__ import annotations

import difflib
import os
import socket
from typing import Any
from urllib.parse import urlsplit

import tensorflow_datasets as tfds

from train.common.builders import docstrings
from train.common.builders.quiet import quiet
from train.common.extras import MissingExtraError
from train.common.labelled_text import SPLITS, Example, LabelledText, hold_out
from train.common.text_source import TextSource

CONNECT_SECONDS = 2.0
PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


def load_tfds(config: TextSource) -> LabelledText:
    """Reads `builtin` or `tfds:<name>`, preparing it first where that is still to do.

    Raises:
        ValueError: no such data set, or it is not text with a class label.
        ConnectionError: it has to be fetched and the network does not answer.
        MissingExtraError: preparing or reading it needs TensorFlow.
    """
    if config.source == "builtin":
        builder = docstrings.prepared(config.prepared_dir)
    else:
        builder = _catalogue_builder(config.source.removeprefix("tfds:"), config)
    texts, label = _columns(builder, config)
    if "train" not in builder.info.splits:
        raise ValueError(f"{config.source} has no train split, only {sorted(builder.info.splits)}")
    found = [split for split in SPLITS if split in builder.info.splits]
    splits = {split: _examples(builder, split, texts, label) for split in found}
    notes = []
    unlabelled = sum(builder.info.splits[s].num_examples - len(splits[s]) for s in found)
    if unlabelled:
        notes.append(f"skipped {unlabelled} records without a label")
    missing = {
        split: getattr(config, f"{split}_fraction")
        for split in ("validation", "test")
        if split not in splits
    }
    if missing:
        splits |= hold_out(splits["train"], missing, config.split_seed)
        held = " and ".join(f"{split} ({len(splits[split])})" for split in missing)
        notes.append(f"held out of the training split at random: {held}")
    names = tuple(builder.info.features[label].names)
    return LabelledText(splits, names, origin=builder.info.full_name, notes=tuple(notes))


def _catalogue_builder(name: str, config: TextSource) -> Any:
    data_dir = str(config.prepared_dir)
    known = set(tfds.list_builders(with_community_datasets=False))
    if name.partition("/")[0].partition(":")[0] not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; close names: {', '.join(near)}" if near else ""
        raise ValueError(f"tensorflow-datasets has no data set {name!r}{hint}")
    try:
        # The format matters only where the data set is still to be prepared.
        with quiet():
            builder = tfds.builder(
                name, data_dir=data_dir, file_format="array_record", try_gcs=False
            )
            is_prepared = builder.is_prepared()
    except ImportError as error:
        raise MissingExtraError(f"{name} needs TensorFlow: pip install 'attnjax[tf]'") from error
    if not is_prepared:
        _prepare(builder, name, data_dir)
    return builder


def _prepare(builder: Any, name: str, data_dir: str) -> None:
    """Downloads and prepares, or says within seconds how to do it elsewhere."""
    urls = _urls(builder)
    size = sum(info.size or 0 for info in (builder.url_infos or {}).values())
    recipe = (
        f"{name} is not prepared in {data_dir}.\n"
        f"  to fetch: {', '.join(urls) or 'see ' + (builder.info.homepage or 'its page')}\n"
        f"  size:     {f'{size / 2**20:,.1f} MiB' if size else 'not stated by the catalogue'}\n"
        f"  goes to:  {builder.data_dir}\n"
        "  prepare it on a machine with a network, then copy that folder here:\n"
        '    python -c "import tensorflow_datasets as tfds; tfds.builder('
        f"'{name}', data_dir='{data_dir}', file_format='array_record').download_and_prepare()\""
    )
    unreachable = _first_unreachable(urls)
    if unreachable:
        raise ConnectionError(f"{unreachable} does not answer, and {recipe}")
    from tensorflow_datasets.core.download import downloader

    # The default retries for minutes what a missing network will not give.
    downloader.MAX_RETRIES = 0
    try:
        builder.download_and_prepare()
    except ImportError as error:
        raise MissingExtraError(
            f"preparing {name} needs TensorFlow: pip install 'attnjax[tf]' ({error})"
        ) from error
    except OSError as error:
        raise ConnectionError(f"{recipe}\n  the download failed: {error}") from error


def _urls(builder: Any) -> list[str]:
    """The addresses that the catalogue knows a data set to come from."""
    infos = builder.url_infos or {}
    return sorted({url for url in infos if url.startswith(("http://", "https://"))})


def _first_unreachable(urls: list[str]) -> str | None:
    """Returns a host that gives no connection; with a proxy set only the download can tell."""
    if any(os.environ.get(name) for name in PROXIES):
        return None
    for url in urls[:1]:
        parts = urlsplit(url)
        port = parts.port or (80 if parts.scheme == "http" else 443)
        try:
            socket.create_connection((parts.hostname, port), timeout=CONNECT_SECONDS).close()
        except OSError:
            return parts.hostname
    return None


def _columns(builder: Any, config: TextSource) -> tuple[list[str], str]:
    """The text and label features: as configured, else as the data set's supervised keys say."""
    features = dict(builder.info.features.items())
    keys = builder.info.supervised_keys or (None, None)
    texts = list(config.text_column) or [name for name in keys[:1] if name]
    label = config.label_column or keys[-1]
    is_text = [isinstance(features.get(name), tfds.features.Text) for name in texts]
    is_label = isinstance(features.get(label), tfds.features.ClassLabel)
    if label is None or not (is_text and all(is_text) and is_label):
        listing = ", ".join(f"{n} ({type(f).__name__})" for n, f in features.items())
        raise ValueError(
            f"{builder.info.full_name}: expected text features and one ClassLabel, got text "
            f"{texts} and label {label!r}; its features are {listing}. Give --data.text-column "
            "and --data.label-column"
        )
    return texts, label


def _examples(builder: Any, split: str, texts: list[str], label: str) -> tuple[Example, ...]:
    try:
        source = builder.as_data_source(split)
        records = source.__getitems__(list(range(len(source))))
    except (ImportError, NotImplementedError) as error:
        raise MissingExtraError(
            f"{builder.data_dir} is stored as {builder.info.file_format}, which takes TensorFlow "
            "to read: pip install 'attnjax[tf]', or prepare it with file_format='array_record'"
        ) from error
    return tuple(
        Example(" ".join(record[name].decode("utf-8") for name in texts), int(record[label]))
        for record in records
        if record[label] >= 0
    )
