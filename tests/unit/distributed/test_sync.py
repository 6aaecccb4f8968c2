import pytest
import torch
from ranks_program import ERRORS, TIMEOUT, raise_on_ranks, stop_requested_by


def test_an_error_of_rank_0_is_raised_on_all_ranks(ranks):
    first, *others = [found["rank 0 fails"] for found in ranks]
    assert first[:2] == (OSError, "disk full")
    assert {other[:2] for other in others} == {(RuntimeError, "rank 0 failed with OSError: disk full")}


def test_a_result_that_cannot_be_pickled_is_an_error_on_all_ranks(ranks):
    first, *others = [found["unpicklable"] for found in ranks]
    assert "pickle" in first[1]
    assert all(kind is RuntimeError and text.startswith("rank 0 failed with ") for kind, text, _ in others)


@pytest.mark.parametrize(("name", "text"), [("error", "ValueError: image 42 is broken"), ("exit", "SystemExit: 3")])
def test_the_failed_rank_raises_its_own_error_and_the_others_name_it(ranks, name, text):
    error = ERRORS[name]
    for rank, found in enumerate(ranks):
        own = (type(error), str(error))
        assert found[name][:2] == (own if rank == 1 else (RuntimeError, f"rank 1 failed with {text}"))


def test_the_error_on_other_ranks_includes_the_notes(ranks):
    expected = "rank 1 failed with OSError: truncated\nwhile loading item 42 of `images`"
    assert ranks[0]["error with note"][1] == expected


def test_the_lowest_rank_is_named_if_two_fail(ranks):
    found = [result["two errors"][:2] for result in ranks]
    expected = [(ValueError, "first"), (RuntimeError, "rank 0 failed with ValueError: first"), (KeyError, "'last'")]
    assert found == (expected if len(ranks) == 3 else expected[::2])


def test_an_interrupt_of_one_rank_is_raised_on_all_ranks(ranks):
    assert {found["interrupt"][0] for found in ranks} == {KeyboardInterrupt}


def test_an_error_has_priority_over_an_interrupt(ranks):
    found = [result["interrupt and error"][:2] for result in ranks]
    text = f"rank {len(ranks) - 1} failed with ValueError: last"
    expected = [(KeyboardInterrupt, ""), (RuntimeError, text), (ValueError, "last")]
    assert found == (expected if len(ranks) == 3 else expected[::2])


def test_a_block_without_an_error_raises_none(ranks):
    assert {found["no error"][:2] for found in ranks} == {(None, "")}


@pytest.mark.parametrize("name", ["rank 0 fails", "unpicklable", *ERRORS, "two errors", "interrupt and error"])
def test_no_rank_waits_for_one_that_failed(ranks, name):
    assert all(found[name][2] < TIMEOUT / 4 for found in ranks)


def test_all_ranks_stop_if_one_asks_to_stop(ranks):
    assert [found["stop"] for found in ranks] == [[False, True, True, True, False]] * len(ranks)


def test_an_error_of_an_iterable_is_raised_on_all_ranks(ranks):
    for rank, found in enumerate(ranks):
        complete, failed = found["iterations"]
        assert complete == ([0, 1, 2], (None, ""))
        error = (OSError, "no third item")
        assert failed == ([0, 1], error if rank == 1 else (RuntimeError, "rank 1 failed with OSError: no third item"))


def test_ranks_are_synchronized_after_an_error_was_caught(ranks):
    assert all(torch.equal(found["gathered at the end"], torch.arange(len(ranks))) for found in ranks)


def test_an_error_that_is_not_caught_ends_every_process_with_its_text(exits):
    assert [code for code, _ in exits] == [1, 1, 1]
    assert "ValueError: not caught" in exits[1][1]
    assert all("RuntimeError: rank 1 failed with ValueError: not caught" in exits[rank][1] for rank in (0, 2))


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_a_single_process_raises_its_own_error(error):
    with pytest.raises(type(error)) as raised:
        raise_on_ranks({0: error})
    assert raised.value is error


def test_a_single_process_stops_if_it_asks_to_stop():
    assert stop_requested_by(0)
    assert not stop_requested_by()
