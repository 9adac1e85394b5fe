"""Programs that train well raise no error and no warning."""

import pytest

from lightning_practices.advisor import advise
from tests.advisor.programs import HEALTHY, load_all

load_all()
pytestmark = [
    pytest.mark.plain,
    pytest.mark.filterwarnings("ignore:Found .* module:UserWarning"),  # in eval mode, on purpose
]


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_program_raises_no_alarm(name: str) -> None:
    report = advise(*HEALTHY[name]())
    assert [one for one in report if one.severity != "hint"] == [], report
