"""A published database from its archive, folder or address to the tree that its config looks for."""

from __future__ import annotations

import contextlib
import functools
import gzip
import logging
import lzma
import posixpath
import shutil
import tarfile
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ipiqa.datasets.databases.annotated import AnnotatedImages
from ipiqa.datasets.table import LEAVES_FOLDER, AnnotationTable
from ipiqa.errors import ConfigError, DataError, shorten
from ipiqa.files import content_sha256, replacing

logger = logging.getLogger("ipiqa")

TIMEOUT = 60  # seconds without a byte after which a server is given up
_DAMAGED = (EOFError, RuntimeError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)

Member = tuple[str, int, Callable[[], Any]]  # name, size in bytes, what opens it


def prepare(dataset: AnnotatedImages, sources: Sequence[str], downloads: Path) -> AnnotationTable:
    """Lays out the files of a database where its settings look for them, and returns its table.

    What is there with the size it has in the source is left as it is: a prepare that was stopped goes on. Nothing is
    written but the table files and the images that the table names, whatever an archive holds.

    Args:
        dataset: says which table files, and where everything belongs.
        sources: zip or tar archives, folders, table files, or http addresses of these. Later ones add what is missing.
        downloads: folder for what comes from an address.

    Raises DataError: a source cannot be used, a file differs from the one published, or images are missing from all.
    """
    paths = [download(source, downloads) if "://" in source else Path(source) for source in sources]
    listed = {path: {name: size for name, size, _ in _members(path)} for path in dict.fromkeys(paths)}
    target = Path(dataset.annotations)
    tables = {target.name: target} | {name: target.parent / name for name in dataset.beside}
    _copy(listed, {posixpath.normpath(name).removeprefix("../"): path for name, path in tables.items()})
    published = dataset.about.sha256.get(target.name) if dataset.about else None
    if published and target.is_file() and (found := content_sha256([target])[0]) != published:
        advice = "Get the published one, or set dataset.annotations to a table of another name."
        raise DataError(f"dataset.annotations: '{target}' has the sha256 {found}, the published {published}. {advice}")
    if not target.is_file():
        raise DataError(f"--from: no {target.name!r} in {', '.join(map(str, paths))}. {dataset.hint}")
    table = dataset.load()
    missing = _copy(listed, dict(zip(table.names, table.image_paths, strict=True)))
    if missing:
        lack = f"{len(missing)} of {table.num_images} images are in none of them, first {missing[0]!r}"
        raise DataError(f"--from: {lack}. Run it again with a further source; what was found is in place.")
    return table


def _copy(listed: Mapping[Path, Mapping[str, int]], wanted: Mapping[str, Path]) -> list[str]:
    """Copies files to their paths, found by the ends of their names, and returns the names that are nowhere."""
    left = dict(wanted)
    for source, sizes in listed.items():
        found = _find(left, sizes, source)
        new = {found[n]: p for n, p in left.items() if n in found and _size(p) != sizes[found[n]]}
        needed, folder = sum(sizes[member] for member in new), next(iter(wanted.values())).parent
        folder.mkdir(parents=True, exist_ok=True)
        if needed > shutil.disk_usage(folder).free:
            raise DataError(
                f"'{folder}': {needed / 1e9:.1f} GB are needed and not free. Make room, or set other paths."
            )
        if new:
            logger.info("'%s': %d files to copy", source, len(new))
        for name, _, open_member in _members(source) if new else ():
            if name in new:
                with _readable(source), open_member() as content, replacing(new[name], "wb") as file:
                    shutil.copyfileobj(content, file)
        left = {name: path for name, path in left.items() if name not in found}
    return [name for name, path in left.items() if not path.is_file()]


def _find(wanted: Mapping[str, Path], names: Mapping[str, int], source: Path) -> dict[str, str]:
    """Returns for each wanted name the member that ends in it."""
    by_last = defaultdict(list)
    for name in names:
        by_last[posixpath.basename(name)].append(name)
    found = {}
    for name in wanted:
        ending = f"/{posixpath.normpath(name)}"
        if matching := [member for member in by_last[posixpath.basename(ending)] if f"/{member}".endswith(ending)]:
            if len(matching) > 1:
                both = " and ".join(map(repr, matching[:2]))
                raise DataError(f"--from: '{source}' holds {name!r} {len(matching)} times, {both}. Leave one of them.")
            found[name] = matching[0]
    return found


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _members(path: Path) -> Iterator[Member]:
    """Yields the files of a folder or an archive, or the file itself; DataError where it cannot be used."""
    if not path.exists():
        raise DataError(f"--from: '{path}' does not exist. Give an archive, a folder, a file or an address.")
    with _readable(path):
        for name, size, open_member in _open(path):
            if LEAVES_FOLDER.match(name):
                raise DataError(f"--from: '{path}' holds {shorten(name)}, which leads out of it. Do not trust it.")
            yield posixpath.normpath(name), size, open_member


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Makes one line of what a damaged archive raises."""
    try:
        yield
    except _DAMAGED as error:
        raise DataError(f"--from: '{path}' cannot be read: {shorten(str(error))}. Get it again.") from error


def _open(path: Path) -> Iterator[Member]:
    if path.is_dir():
        files = (file for file in sorted(path.rglob("*")) if file.is_file())
        yield from ((f.relative_to(path).as_posix(), f.stat().st_size, functools.partial(f.open, "rb")) for f in files)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            yield from ((i.filename, i.file_size, functools.partial(archive.open, i)) for i in infos)
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:  # a link or a device is no file: it is passed over
            yield from ((m.name, m.size, functools.partial(tar.extractfile, m)) for m in tar if m.isfile())
    else:
        yield path.name, path.stat().st_size, functools.partial(path.open, "rb")


def download(address: str, folder: Path) -> Path:
    """Returns the file that an address leads to, in the folder; what was loaded of it before is not loaded again."""
    parts = urllib.parse.urlsplit(address)
    name = posixpath.basename(parts.path)
    if parts.scheme not in ("http", "https") or not name or LEAVES_FOLDER.match(name):
        raise ConfigError(
            f"--from: {address!r} is no address of a file. Give one that begins with https://, or a path."
        )
    path, part = folder / name, folder / f"{name}.part"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    have = _size(part) or 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            goes_on = response.status == 206
            total = int(response.headers.get("Content-Length") or -1) + (have if goes_on else 0)
            logger.info("%s: %s of %.1f MB", address, "the rest" if goes_on else "all", total / 1e6)
            with part.open("ab" if goes_on else "wb") as file:
                shutil.copyfileobj(response, file, 1 << 20)
    except (OSError, ValueError) as error:
        raise DataError(f"--from: {address} cannot be loaded: {error}. Run it again to go on.") from error
    if total >= 0 and _size(part) != total:
        raise DataError(f"--from: {address} ended after {_size(part)} of {total} bytes. Run it again to go on.")
    part.replace(path)
    return path
