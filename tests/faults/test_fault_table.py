"""Whatever an upstream does wrong, the client gets an honest answer and the cache stays right.

The expectations are `table.CASES`; the experiment is `observing`. Around it stand the laws that
know no exception.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.observing import (
    LONGEST_WAIT_SECONDS,
    NOTHING,
    THE_FILE,
    Experiment,
    Seen,
    Situation,
    Try,
)
from tests.faults.table import CASES, Case, cases_for, document, kept
from tests.world import faults
from tests.world.registry import Registry
from tests.world.server import RegistryServer

DOCUMENT = Path(__file__).parents[2] / "docs" / "fault-table.md"


@pytest.fixture
def refusing(registry: Registry) -> Iterator[RegistryServer]:
    """A second server of the same registry, which will be stopped."""
    with RegistryServer(registry) as server:
        yield server


def observe(
    tmp_path: Path,
    situation: Situation,
    cases: list[Case],
    servers: tuple[RegistryServer, RegistryServer],
    registry: Registry,
) -> dict[str, Seen]:
    trials = [case.trial(situation) for case in cases]
    experiment = Experiment(tmp_path / "holdfast", situation, trials, *servers, registry)
    return {case.title: seen for case, seen in zip(cases, experiment.run(), strict=True)}


@pytest.mark.parametrize("situation", Situation, ids=lambda situation: situation.name.lower())
def test_the_table_of_faults_holds(
    tmp_path: Path,
    registry: Registry,
    upstream: RegistryServer,
    refusing: RegistryServer,
    situation: Situation,
) -> None:
    cases = list(cases_for(situation, slow=False))
    seen = observe(tmp_path, situation, cases, (upstream, refusing), registry)
    expected = {case.title: case.expected(situation) for case in cases}
    assert {title: each.got for title, each in seen.items()} == expected
    assert {title: each.kept for title, each in seen.items()} == {
        title: kept(got) for title, got in expected.items() if got is not None
    }
    assert {title: each.heals for title, each in seen.items()} == {
        case.title: not case.is_remembered(situation) for case in cases
    }
    assert {title for title, each in seen.items() if each.seconds > LONGEST_WAIT_SECONDS} == set()


@pytest.mark.parametrize("situation", [Situation.INDEX_COLD, Situation.SMALL_CRATE])
def test_a_client_is_answered_in_time_though_the_upstream_never_comes_to_an_end(
    tmp_path: Path,
    registry: Registry,
    upstream: RegistryServer,
    refusing: RegistryServer,
    situation: Situation,
) -> None:
    cases = list(cases_for(situation, slow=True))
    assert cases
    seen = observe(tmp_path, situation, cases, (upstream, refusing), registry)
    for case in cases:
        assert seen[case.title].got == case.expected(situation)
        assert seen[case.title].seconds < LONGEST_WAIT_SECONDS


def test_nothing_becomes_404_that_is_not_absence() -> None:
    for case in CASES:
        for situation in Situation:
            got = case.expected(situation)
            if got is not None and got.status not in (200, 502, 503, 504):
                assert got.status == 404
                assert case.settings or case.title in ("answers 404", "answers 410", "answers 451")


def test_the_document_says_what_the_table_says() -> None:
    assert DOCUMENT.read_text() == document(), "python -m tests.faults.table > docs/fault-table.md"
