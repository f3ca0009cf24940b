"""Are the artist's own licensed files what their authors published? Told by SHA-256, in the log.

Another file is read all the same: FLAME has several releases, and a smaller model may come under these names. That a
file cannot do harm is the readers' business (`unpickle`, `weights`), not the hash's.
"""

import logging
from functools import lru_cache
from pathlib import Path

from ..io.hashes import sha256

log = logging.getLogger(__name__)

KNOWN = {
    # As several independent projects that check their downloads state them; 434,142,943 and 53,023,716 bytes.
    "e714ed293054cba5eea9c96bd3b6b57880074cd84b3fd00d606cbaf0bee7c5c2": "DECA's deca_model.tar as published",
    "efcd14cc4a69f3a3d9af8ded80146b5b6b50df3bd74cf69108213b144eba725b": "FLAME 2020's generic_model.pkl as published",
}


def check(path: Path) -> str | None:
    """Log whether a file is one of `KNOWN`, once for each state of it, and return what it is; `None`: another file.

    Raises:
        OSError: it cannot be read.
    """
    about = path.stat()
    return _check(path.resolve(), about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=32)
def _check(path: Path, size: int, changed: int) -> str | None:
    digest = sha256(path)
    known = KNOWN.get(digest)
    if known:
        log.info("FantasyID: %s is %s.", path.name, known)
    else:
        log.info("FantasyID: %s is not a file known by its hash; SHA-256 %s.", path.name, digest)
    return known
