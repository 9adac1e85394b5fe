"""The page on the advisor has the rules as they are."""

import pytest

from tests.advisor.table import PAGE, page

pytestmark = pytest.mark.plain


def test_the_page_lists_the_rules() -> None:
    assert PAGE.read_text("utf-8") == page(), "run python -m tests.advisor.table"
