"""Public data sets through tensorflow-datasets: found, prepared if need be, and read."""

from __future__ import annotations

import difflib
import importlib
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import tensorflow_datasets as tfds

from train.common.builders.quiet import quiet
from train.common.extras import MissingExtraError

CONNECT_SECONDS = 2.0
_PARTS = ("question_answering", "summarization", "text", "translate")
"""Parts of the catalogue that hold texts."""
PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


def catalogue_builder(name: str, prepared_dir: Path) -> Any:
    """The builder of a data set of the catalogue, its data prepared.

    Args:
        name: as the catalogue has it, with `/config` where there are several.
        prepared_dir: where prepared data sets live.

    Raises:
        ValueError: the catalogue has no such data set.
        ConnectionError: it has to be fetched and the network does not answer; says what to do.
        MissingExtraError: preparing it needs TensorFlow.
    """
    data_dir = str(prepared_dir)
    for part in _PARTS:
        # These register their data sets only once something asks for them.
        importlib.import_module(f"tensorflow_datasets.{part}")
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


def read_records(builder: Any, split: str) -> list[dict[str, Any]]:
    """All records of a split, texts as bytes.

    Raises:
        MissingExtraError: its files take TensorFlow to read.
    """
    try:
        source = builder.as_data_source(split)
        return source.__getitems__(list(range(len(source))))
    except (ImportError, NotImplementedError) as error:
        raise MissingExtraError(
            f"{builder.data_dir} is stored as {builder.info.file_format}, which takes TensorFlow "
            "to read: pip install 'attnjax[tf]', or prepare it with file_format='array_record'"
        ) from error


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
    except AssertionError as error:  # what it raises where files have to be fetched by hand
        raise ValueError(f"{name} cannot be downloaded by a program: {error}") from error


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
