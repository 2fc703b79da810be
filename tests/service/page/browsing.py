"""A browser for the tests: where Playwright is missing, the modules that import this are skipped.

Not where CI is set: there, a test that is skipped would be missed by nobody.
"""

import os

import pytest

if not os.environ.get("CI"):
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed: `make test`")

from playwright.sync_api import Browser, Locator, Page, Request, Response, expect

expect.set_options(timeout=90_000)

__all__ = ["Browser", "Locator", "Page", "Request", "Response", "expect"]
