"""What tests of the page share."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tools.browser import find_browser, open_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """An installed browser."""
    executable = find_browser()
    if executable is None:
        pytest.skip("no Chromium, Chrome or Edge is installed")
    with open_browser(executable) as browser:
        yield browser
