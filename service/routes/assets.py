"""Files that a browser loads: read once, ready to be sent whole, packed or not at all."""

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from service.routes.negotiation import parse_accept

_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_PACKED = ".gz"


@dataclass(frozen=True)
class Asset:
    """One file, in memory.

    Attributes:
        media_type: Of the file, whether packed or not.
        plain: Its bytes.
        packed: The same, by gzip.
        tag: What the bytes are known by.
    """

    media_type: str
    plain: bytes
    packed: bytes
    tag: str

    def encoded(self, accept_encoding: str | None) -> tuple[bytes, dict[str, str]]:
        """Return the bytes for a client, and the headers that go with them.

        A copy is to be checked each time, which costs one small answer, so that no old script
        ever meets a new page.

        Args:
            accept_encoding: The client's header of that name.
        """
        is_packed = ("gzip", True) in (
            (name, quality > 0) for name, quality in parse_accept(accept_encoding or "")
        )
        headers = {
            "etag": f'"{self.tag}-gzip"' if is_packed else f'"{self.tag}"',
            "cache-control": "no-cache",
            "vary": "Accept-Encoding",
            "x-content-type-options": "nosniff",
        }
        if not is_packed:
            return self.plain, headers
        return self.packed, headers | {"content-encoding": "gzip"}


def read_assets(folder: Path) -> dict[str, Asset]:
    """Read the files of a folder and of those in it, by their names without `.gz`.

    What a browser does not load, like a licence, is left out.
    """
    assets = {}
    for path in sorted(folder.rglob("*")):
        name = path.name.removesuffix(_PACKED)
        media_type = _MEDIA_TYPES.get(Path(name).suffix)
        if media_type is not None:
            assert name not in assets, f"two files are named {name}"
            assets[name] = _read(path, media_type)
    return assets


def _read(path: Path, media_type: str) -> Asset:
    content = path.read_bytes()
    if path.suffix == _PACKED:
        plain, packed = gzip.decompress(content), content
    else:
        plain, packed = content, gzip.compress(content, mtime=0)
    return Asset(media_type, plain, packed, hashlib.sha256(plain).hexdigest()[:32])
