"""`fit` on two and on three ranks, all of whose trainings run in one start of three processes."""

from math import ceil

import differing_ranks
import processes
import pytest
import torch
import training_ranks_program as program
from training_ranks_program import N, gradients, joint_batch

from udmlss import Epochs

pytestmark = pytest.mark.xdist_group("ranks")  # so that the processes start once


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return the outcomes of each rank by number of ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    ports = [processes.free_port() for _ in program.WORLD_SIZES]
    ended = processes.finish(processes.start(program.__file__, max(program.WORLD_SIZES), folder, *ports))
    assert [code for code, _ in ended] == [0, 0, 0], ended
    paths = {size: [folder / f"{rank}-of-{size}.pt" for rank in range(size)] for size in program.WORLD_SIZES}
    return {size: [torch.load(path, weights_only=False) for path in each] for size, each in paths.items()}


@pytest.fixture(params=program.WORLD_SIZES, ids="{} ranks".format)
def ranks(found, request):
    """Return the outcomes of each rank."""
    return found[request.param]


@pytest.fixture
def three_ranks(found):
    return found[3]


def assert_same(one, other, *names):
    torch.testing.assert_close([one[name] for name in names], [other[name] for name in names], rtol=0, atol=0)
    assert torch.equal(one["labels"], other["labels"])
    assert one["history"] == other["history"]
    assert one["end"] == other["end"]


@pytest.mark.parametrize("name", ["trained", "resumed", "unused parameter", "communities", "changing clusters", "disk"])
def test_all_ranks_have_the_same_labels_history_and_weights(ranks, name):
    first, *others = [outcome[name] for outcome in ranks]
    assert len(first["labels"]) == N
    assert [report.step for report in first["history"]] == [3, 6, 7]
    for other in others:
        assert_same(other, first, "weights", "model")


def test_the_final_embedder_is_that_of_the_features_of_the_returned_model(ranks):
    for outcome in ranks:
        torch.testing.assert_close(*outcome["unused parameter"]["embedders"])


def test_epochs_count_the_images_of_all_ranks(ranks):
    one = program.train(max_steps=Epochs(3), relabel_every=Epochs(1))["history"]
    for outcome in ranks:
        history = outcome["epochs"]["history"]
        assert len(history) == len(one) == 3
        assert history[-1].step == ceil(3 * ceil(one[-1].step / 3) / len(ranks))


@pytest.mark.parametrize(("name", "n_batches"), [("gradients", 1), ("gradients of batches", 2)])
def test_gradients_of_a_step_are_those_of_one_process_with_all_images(ranks, name, n_batches):
    expected, report = gradients(*joint_batch(), n_batches)
    assert all(gradient.any() for gradient in expected)
    for outcome in ranks:
        found, found_report = outcome[name]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert found_report.loss == pytest.approx(report.loss, rel=1e-5)
        assert found_report.rotation_loss == pytest.approx(report.rotation_loss, rel=1e-5)


def test_a_step_has_five_collective_operations(ranks):
    # embeddings and labels are gathered, the gradients of the parameters and the figures of the report are averaged,
    # and errors are synchronized; the second step also builds the buckets of the gradients anew
    for outcome in ranks:
        assert set(outcome["collectives"]) == {5}


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(ranks):
    for outcome in ranks:
        assert_same(outcome["resumed"], outcome["trained"], "weights", "model")


@pytest.mark.parametrize("name", ["disk", "start features"])
def test_embeddings_on_a_disk_and_known_features_give_the_same_run(ranks, name):
    for outcome in ranks:
        assert_same(outcome[name], outcome["memory"], "weights", "model")


def test_rank_zero_alone_shows_progress_and_calls_functions(ranks):
    first, *others = ranks
    assert "7/7" in first["printed"]
    assert first["calls"] == 3
    for other in others:
        assert other["printed"] == ""
        assert other["calls"] == 0


@pytest.mark.parametrize(
    ("name", "message", "note"),
    [
        ("loading", "OSError: image 7 cannot be read", "while loading item"),
        ("auxiliary", "ValueError: crops are too small", "`fit` had taken 2 steps in 0 complete rounds"),
    ],
)
def test_an_error_of_one_rank_ends_all_ranks(three_ranks, name, message, note):
    errors = [outcome[name] for outcome in three_ranks]
    kind, text, notes = errors[1]
    assert f"{kind.__name__}: {text}" == message
    assert note in " ".join(notes)
    for kind, text, _ in (errors[0], errors[2]):
        assert kind is RuntimeError
        assert text.startswith(f"rank 1 failed with {message}")


def test_an_error_of_rank_zero_ends_all_ranks(three_ranks):
    errors = [(kind, text) for kind, text, _ in (outcome["full disk"] for outcome in three_ranks)]
    assert errors == [(OSError, "no space left"), *[(RuntimeError, "rank 0 failed with OSError: no space left")] * 2]


@pytest.mark.parametrize(
    ("name", "reason", "steps"),
    [
        ("on_step", "callback", {6}),  # all ranks know of the request of step 5 at the end of step 6
        ("on_round", "callback", {6}),
        ("interrupt", "interrupt", {1, 2, 3, 4, 5}),
    ],
)
def test_a_request_of_one_rank_ends_all_ranks(three_ranks, name, reason, steps):
    first, *others = [outcome[name] for outcome in three_ranks]
    assert first["end"] == (reason, first["history"][-1].step)
    assert first["history"][-1].step in steps
    for other in others:
        assert_same(other, first, "weights")


def test_sigterm_to_one_rank_saves_and_ends_all_ranks(three_ranks):
    for outcome in three_ranks:
        kind, text, _ = outcome["SIGTERM"]
        assert (kind, text) == (SystemExit, "143")
        assert_same(outcome["resumed after SIGTERM"], outcome["uninterrupted"], "weights", "model")


REMEDIES = {
    "settings": "Pass the same arguments",
    "images": "Open the same files",
    "seed": "Call `torch.manual_seed` with",
}
DIFFERENCES = {name: (name, "settings") for name in differing_ranks.SETTINGS}
DIFFERENCES |= {name: (name, "images") for name in differing_ranks.DATASETS}
DIFFERENCES |= {
    "training images": ("checksum of images", "images"),
    "resume": ("Checkpoint.resume False on rank 0 and True on", "settings"),
    "seed of a loop": ("seed 1 on rank 0 and 2 on", "settings"),
    "weights of a loop": ("checksum of the tensor model.embedder.weight", "seed"),
    "buffer of the loss": ("checksum of the tensor criterion.metric_loss.projection", "seed"),
    "tensor of the loss": ("checksum of the tensor criterion.metric_loss.projection", "seed"),
    "round of a loop": ("number of the round 0 on rank 0 and 1 on", "settings"),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_difference_between_ranks_is_an_error_on_all_ranks(ranks, name):
    errors = [outcome["differences"][name] for outcome in ranks]
    named, kind = DIFFERENCES[name]
    assert errors == [(ValueError, errors[0][1])] * len(ranks)
    assert f"{named} " in errors[0][1]
    assert " on rank 0 and " in errors[0][1]
    assert REMEDIES[kind] in errors[0][1]


def test_an_invalid_argument_of_one_rank_ends_all_ranks(ranks):
    *others, last = [outcome["differences"]["invalid seed"] for outcome in ranks]
    assert last == (ValueError, "`seed` must be at least 0, got -1. Raise it.")
    assert others == [(RuntimeError, f"rank {len(others)} failed with ValueError: {last[1]}")] * len(others)


def test_ranks_compare_themselves_in_one_exchange(ranks):
    for outcome in ranks:
        assert outcome["differences"]["exchanges"] == [1, 1]


def test_ranks_may_differ_in_weights_folders_workers_and_functions_as_callbacks(ranks):
    first, *others = [outcome["allowed differences"] for outcome in ranks]
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)


def test_a_parameter_without_effect_does_not_change(ranks):
    alone = program.train(criterion=program.with_unused_parameters)
    for outcome in (alone, *(outcome["unused parameter"] for outcome in ranks)):
        assert [value.unique().tolist() for value in outcome["model"][-2:]] == [[1.0], [1.0]]
