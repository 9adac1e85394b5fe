"""Each fault is found by the right rule in the right module, and by no rule of another cause."""

import pytest

from lightning_practices.advisor import advise
from tests.advisor.programs import FAULTY, load_all

load_all()
pytestmark = [
    pytest.mark.plain,
    pytest.mark.filterwarnings("ignore:Found .* module:UserWarning"),  # in eval mode, on purpose
]


@pytest.mark.parametrize("name", FAULTY)
def test_fault_is_found(name: str) -> None:
    program = FAULTY[name]
    report = advise(*program.make())
    found = [one for one in report if one.id == program.id]
    assert found, f"{program.id} is silent:\n{report}"
    named = {module for one in found for module in one.modules}
    assert named >= set(program.modules), report
    others = {one.id for one in report if one.severity != "hint"} - {program.id, *program.also}
    assert not others, report
