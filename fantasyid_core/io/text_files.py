"""Text files that other programs wrote."""

from pathlib import Path


def read_text(path: str | Path) -> str:
    """A text file in UTF-8, with or without the byte order mark that Windows' editors put in front.

    Raises:
        OSError: it cannot be read.
        ValueError: it is in another encoding; the message says what to do.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("it is not in UTF-8: open it in an editor and save it with the encoding UTF-8") from error
