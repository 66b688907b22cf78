"""Sixty kinds of bad requests over each protocol: each is told what is wrong, and none is felt by its neighbours."""

import pytest

from tests.hostile.catalogue import PROTOCOLS, TITLES
from tests.hostile.protocols import Case, Said

ALL = [
    (name, n, case)
    for name, p in PROTOCOLS.items()
    for n, cases in p.CASES.items()
    if not isinstance(cases, str)
    for case in cases
]
IDS = [f"{name}-{n}-{case.what}" for name, n, case in ALL]
# what goes along with each bad request
NEIGHBOURS = 20


def check(case: Case, said: Said) -> None:
    assert said.code == case.code, said
    if case.code in (200, "OK"):
        assert not case.numbers or said.numbers == pytest.approx(case.numbers)
    else:
        assert case.says in said.text
        # one line, without what only its operator may read
        assert "\n" not in said.text
        assert "secret" not in said.text
        assert "Traceback" not in said.text


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_number_of_the_catalogue_is_tried_or_said_to_make_no_sense(protocol):
    cases = PROTOCOLS[protocol].CASES
    assert sorted(cases) == list(TITLES) == list(range(1, 61))
    assert all(len(reason) > 10 if isinstance(reason, str) else reason for reason in cases.values())


@pytest.mark.parametrize(("protocol", "number", "case"), ALL, ids=IDS)
def test_a_bad_request_is_told_what_is_wrong(catalogue_servers, protocol, number, case):
    """Twice, since what comes again may be answered another way than what is new."""
    how, server = PROTOCOLS[protocol].PROTOCOL, catalogue_servers[case.model]
    for _ in range(2):
        check(case, how.end(how.begin(server, case)))


@pytest.fixture(scope="module")
def neighbours(catalogue_servers):
    """Who asks well, over each protocol in turn, and goes on with the same connection whatever happens beside it."""
    kinds = [list(PROTOCOLS.values())[n % len(PROTOCOLS)] for n in range(NEIGHBOURS)]
    found = {model: [(kind, kind.PROTOCOL.open(server)) for kind in kinds] for model, server in catalogue_servers.items()}
    yield found
    for connection in [one for ones in found.values() for _, one in ones if one is not None]:
        connection.close()


@pytest.mark.parametrize(("protocol", "number", "case"), ALL, ids=IDS)
def test_a_bad_request_is_not_felt_by_those_beside_it(catalogue_servers, neighbours, protocol, number, case):
    """They come before it and after it, over all protocols, and wait in the same queue."""
    server, how, sent = catalogue_servers[case.model], PROTOCOLS[protocol].PROTOCOL, []
    for n, (kind, connection) in enumerate(neighbours[case.model]):
        if n == NEIGHBOURS // 2:
            bad = how.begin(server, case)
        one = kind.good(100 + n, case.model)
        sent.append((kind.PROTOCOL, one, kind.PROTOCOL.begin(server, one, connection)))
    for kind, one, begun in sent:
        check(one, kind.end(begun, keep=True))
    said = how.end(bad)
    if said.code != case.behind_others:
        check(case, said)


@pytest.mark.parametrize("model", ["Table", "Mixed"])
def test_they_were_joined(catalogue_servers, metrics, model):
    """Else what is above would show little."""
    found = metrics(catalogue_servers[model])
    batches = sum(v for k, v in found.items() if k.startswith("serve_batch_rows_count"))
    rows = sum(v for k, v in found.items() if k.startswith("serve_batch_rows_sum"))
    assert rows > 2 * batches > 0
