"""A loop over `Rounds` ends with the weights of `fit`; `Rounds` resumes and validates its arguments."""

import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from pytorch_metric_learning import losses
from short_training import IMAGES, SETTINGS, Augmented, criterion, make_model, make_pretrained_model, short_fit, weights
from torch import nn

from udmlss import (
    ClusterPseudoLabeler,
    EmbeddingModel,
    PseudoLabels,
    RotationPretextHead,
    Rounds,
    embed,
    frozen_batch_norm,
    parameter_groups,
)
from udmlss.training import snapshot


def model_without_batch_norm():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2))
    return EmbeddingModel(trunk, nn.Linear(36, 16))


def parts(build_model=make_model, *, in_features=None, proxies=False, freeze=False, labeler=None, **settings):
    """Return what a training needs, built from the same random numbers each time."""
    model = build_model()
    head = None if in_features is None else RotationPretextHead(in_features, 8, max_images=5)
    loss = criterion(losses.ProxyAnchorLoss(16, 16) if proxies else None)
    images = settings.pop("images", None) or Augmented()
    optimizer = torch.optim.AdamW(parameter_groups(model, loss, head))
    rounds = Rounds(model, images, labeler or ClusterPseudoLabeler(16), **(SETTINGS | settings))
    return SimpleNamespace(
        model=model, rounds=rounds, criterion=loss, optimizer=optimizer, rotation_head=head, freeze=freeze
    )


def steps(own):
    """Train as users do in a loop of their own, and yield after each step."""
    own.model.train()
    with frozen_batch_norm(own.model) if own.freeze else nullcontext():
        for current in own.rounds:
            if current.batches_done == 0:
                own.criterion.start_round(current.pseudo_labels)
            for images, labels in current:
                features = own.model.trunk(images)
                rotations = ()
                if own.rotation_head is not None:
                    reused = features if own.freeze else None
                    rotations = own.rotation_head.predict_rotations(own.model, images, reused)
                loss = own.criterion(own.model.embed_features(features), labels, *rotations)
                own.optimizer.zero_grad()
                loss.backward()
                own.optimizer.step()
                yield loss.item()


def train(own, seed=0):
    torch.manual_seed(seed)
    return list(steps(own))


def state_of(own):
    buffers = [buffer.clone() for buffer in own.model.buffers()]
    modules = [own.model, own.criterion] + ([] if own.rotation_head is None else [own.rotation_head])
    return weights(*modules), buffers


TRAININGS = {
    "without batch norm": {"build_model": model_without_batch_norm, "seed": 3},
    "batch norm": {},
    "frozen batch norm": {"build_model": make_pretrained_model, "freeze": True},
    "rotation": {"build_model": model_without_batch_norm, "in_features": 36},
    "rotation and batch norm": {"in_features": 256, "cluster_on": "embeddings"},
    "rotation and frozen batch norm": {"build_model": make_pretrained_model, "freeze": True, "in_features": 256},
    "proxies": {"proxies": True, "max_steps": 7},
    "clustering of other images": {"cluster_images": IMAGES},
    "two views and features": {"views": 2, "samples_per_cluster": 2, "cluster_on": "features"},
    "a process that loads images": {"num_workers": 1, "in_features": 256, "views": 2},
}


@pytest.mark.parametrize("training", TRAININGS.values(), ids=TRAININGS)
def test_loop_over_rounds_ends_with_the_weights_of_fit(training):
    own, other = parts(**training), parts(**training)
    found = train(own, training.get("seed", 0))
    names = {"seed", "cluster_images", "views", "cluster_on", "num_workers", *SETTINGS}
    changes = {name: value for name, value in training.items() if name in names}
    result = short_fit(
        other.model,
        Augmented(),
        criterion=other.criterion,
        rotation_head=other.rotation_head,
        freeze_batch_norm=other.freeze,
        **changes,
    )
    torch.testing.assert_close(state_of(own), state_of(other), rtol=0, atol=0)
    assert result.history[-1].step == len(found) == training.get("max_steps", 6)
    assert sum(found[:3]) / 3 == pytest.approx(result.history[0].loss)


@pytest.mark.parametrize("n_steps", [1, 3, 4, 6])
def test_interrupted_loop_resumes_bit_for_bit(n_steps):
    training = {"in_features": 256, "proxies": True, "cluster_images": IMAGES}
    whole, interrupted, resumed = (parts(**training) for _ in range(3))
    train(whole)
    torch.manual_seed(0)
    running = steps(interrupted)
    for _ in range(n_steps):
        next(running)
    names = ("model", "criterion", "rotation_head", "optimizer", "rounds")
    file = io.BytesIO()
    state = {name: getattr(interrupted, name).state_dict() for name in names} | {"random": torch.get_rng_state()}
    torch.save(state, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    for name in names:
        getattr(resumed, name).load_state_dict(state[name])
    torch.set_rng_state(state["random"])
    assert len(list(steps(resumed))) == 6 - n_steps
    torch.testing.assert_close(state_of(resumed), state_of(whole), rtol=0, atol=0)


def batches_of(rounds):
    return [(current.number, images, labels) for current in rounds for images, labels in current]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_iteration_left_by_break_continues_with_the_next_batch(num_workers):
    whole = batches_of(parts().rounds)
    rounds, found = parts(num_workers=num_workers).rounds, []
    for current in rounds:
        for images, labels in current:
            found.append((current.number, images, labels))
            if len(found) in {2, 5}:
                break
        if len(found) == 2:
            break
    assert len(found) == 2
    found += batches_of(rounds)
    torch.testing.assert_close(found, whole, rtol=0, atol=0)
    assert batches_of(rounds) == []


def test_round_yields_images_with_their_own_labels():
    images = torch.arange(40.0).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    model = EmbeddingModel(nn.Flatten(), nn.Linear(48, 4))
    settings = {"clusters_per_batch": 2, "samples_per_cluster": 3, "views": 2, "max_steps": 7, "relabel_every": 4}
    rounds = Rounds(model, images, lambda embeddings: [7, 3, 9, -1] * 10, **settings)
    lengths = []
    for current in rounds:
        labels_of_all = current.pseudo_labels.labels
        assert labels_of_all[:4].tolist() == [1, 0, 2, -1]
        lengths.append((current.number, len(current)))
        for batch, labels in current:
            assert batch.shape == (12, 3, 4, 4)
            indices = batch[:, 0, 0, 0].long()
            assert torch.equal(labels_of_all[indices], labels)
            assert labels.dtype == torch.int64
            assert labels.min() >= 0
            assert labels.bincount(minlength=3).sort().values.tolist() == [0, 6, 6]
    assert lengths == [(0, 4), (1, 3)]


def test_a_round_has_no_batch_with_two_clusters_of_a_coarse_cluster():
    labels, coarse = torch.arange(40) // 4, torch.arange(40) // 8

    class Labeler:
        def label(self, _):
            return PseudoLabels(labels, None, labels.bincount(), coarse_labels=coarse)

    model = EmbeddingModel(nn.Flatten(), nn.Linear(48, 4))
    rounds = Rounds(model, torch.rand(40, 3, 4, 4), Labeler(), samples_per_cluster=2, views=1, max_steps=9)
    for current in rounds:
        for _, found in current:
            assert len(found) == 10
            assert (found // 2).unique().tolist() == [0, 1, 2, 3, 4]


def test_embeddings_in_a_folder_give_the_same_batches_and_leave_no_file(tmp_path):
    in_memory, on_disk = parts(), parts(embeddings_folder=str(tmp_path))
    train(in_memory)
    train(on_disk)
    torch.testing.assert_close(state_of(on_disk), state_of(in_memory), rtol=0, atol=0)
    assert not list(tmp_path.iterdir())


def test_rounds_embed_the_model_that_is_assigned():
    own, frozen = parts(cluster_images=IMAGES, cluster_on="embeddings"), make_model()
    labels = []
    for current in own.rounds:
        own.rounds.model = frozen
        labels.append(current.pseudo_labels)
        for _ in current:
            with torch.no_grad():
                own.model.embedder.weight.normal_()
    assert labels[1].agreement == 1


def test_scores_are_computed_on_request_and_their_embeddings_are_clustered():
    seen = []

    def labeler(embeddings):
        seen.append(embeddings)
        return torch.arange(len(embeddings)) % 16

    without = parts(labeler=labeler).rounds
    assert without.score() is None
    rounds = parts(labeler=labeler, label_free=True, cluster_images=IMAGES).rounds
    scores = []
    for current in rounds:
        list(current)
        with torch.no_grad():
            rounds.model.embedder.weight.normal_()
        scores.append(rounds.score())
        with torch.no_grad():
            rounds.model.embedder.weight.normal_()  # after the snapshot that the next round clusters
    assert rounds.start_scores.score != scores[0].score
    again = parts(label_free=True, cluster_images=IMAGES).rounds
    next(iter(again))
    assert again.start_scores == rounds.start_scores
    assert [rows.shape[1] for rows in seen] == [256, 16]


def test_a_score_before_the_first_round_is_that_of_the_start_and_one_within_a_round_is_not_clustered():
    seen, expected = [], []

    def labeler(embeddings):
        seen.append(embeddings)
        return torch.arange(len(embeddings)) % 16

    rounds = parts(labeler=labeler, label_free=True, cluster_images=IMAGES).rounds
    assert rounds.score() == rounds.start_scores
    for current in rounds:
        for number, _ in enumerate(current):
            if number == 0:
                rounds.score()
            with torch.no_grad():
                rounds.model.embedder.weight.normal_()
        expected.append(embed(rounds.model, IMAGES, progress=False))
    assert [rows.shape[1] for rows in seen] == [256, 16]
    torch.testing.assert_close(seen[1], expected[0])


@pytest.mark.parametrize("cluster_on", [None, "embeddings", "features"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_known_features_replace_the_first_pass_and_are_not_changed(cluster_on, dtype, monkeypatch):
    labels, calls = [], []
    features = embed(make_model(), IMAGES, output="features").to(dtype)
    given, embed_all = features.clone(), snapshot.embed_all
    monkeypatch.setattr(snapshot, "embed_all", lambda *args, **options: calls.append(0) or embed_all(*args, **options))
    for start_features in (None, given):
        rounds = parts(cluster_on=cluster_on, start_features=start_features, cluster_images=IMAGES).rounds
        labels.append([current.pseudo_labels.labels for current in rounds if list(current)])
    torch.testing.assert_close(labels[1], labels[0])
    assert len(labels[0]) == 2
    assert len(calls) == 3
    assert torch.equal(given, features)


def test_part_without_a_seed_uses_the_seed_of_the_rounds():
    batches = {}
    for name, seed, labeler in (("default", 4, None), ("own", 0, 4), ("other", 0, None)):
        settings = {"images": Augmented(), "seed": seed, "labeler": ClusterPseudoLabeler(16, seed=labeler)}
        current = next(iter(parts(cluster_images=IMAGES, **settings).rounds))
        batches[name] = current.pseudo_labels.labels
    assert torch.equal(batches["default"], batches["own"])
    assert not torch.equal(batches["default"], batches["other"])


def test_state_holds_the_labeler_and_the_scores():
    own, other = (parts(label_free=True, cluster_images=IMAGES).rounds for _ in range(2))
    list(next(iter(own)))
    other.load_state_dict(own.state_dict())
    assert other.start_scores == own.start_scores
    assert other.labeler.state_dict()["round"] == 1
    assert [(current.number, len(list(current))) for current in other] == [(0, 0), (1, 3)]


def test_round_that_is_not_iterated_raises_an_error():
    with pytest.raises(ValueError, match=r"batches of a round must be sampled .*, got none of round 0\. Write `for"):
        list(parts().rounds)


@pytest.mark.parametrize(
    ("model", "changes", "error", "message"),
    [
        (nn.Flatten(), {}, TypeError, r"`model` must be an EmbeddingModel, got Flatten"),
        (None, {"cluster_on": "pixels"}, ValueError, r"must be one of 'embeddings', 'features', got 'pixels'"),
        (None, {"max_steps": 0}, ValueError, r"`max_steps` must be at least 1, got 0"),
        (None, {"seed": -1}, ValueError, r"`seed` must be at least 0, got -1"),
        (None, {"seed": 2**63}, ValueError, r"`seed` must be at most 9223372036854775807, got 9223372036854775808\."),
        (None, {"start_features": IMAGES.flatten(1)[1:]}, ValueError, r"a row for each image, got 239 rows for 240 im"),
        (None, {"start_features": IMAGES}, ValueError, r"`start_features` must be a non-empty 2-D tensor, got shape"),
        (None, {"num_workers": -1}, ValueError, r"`num_workers` must be at least 0, got -1"),
        (None, {"cluster_images": IMAGES[:-1]}, ValueError, r"same images as `images`, got 239 and 240 images"),
    ],
)
def test_invalid_arguments_raise_an_error_before_any_image_is_loaded(model, changes, error, message, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(error, match=message):
        Rounds(model or make_model(), Augmented(), ClusterPseudoLabeler(16), **changes)


def test_features_of_another_trunk_raise_an_error():
    rounds = parts(start_features=torch.rand(240, 255)).rounds
    with pytest.raises(ValueError, match=r"got 255 columns for a trunk that returns 256 features"):
        next(iter(rounds))


def test_rounds_do_not_change_the_global_random_state():
    before = torch.get_rng_state()
    rounds = Rounds(make_model(), Augmented(), ClusterPseudoLabeler(16), **SETTINGS, label_free=True, num_workers=1)
    torch.set_rng_state(before)
    batches_of(rounds)
    rounds.score()
    assert torch.equal(torch.get_rng_state(), before)


def test_rounds_in_another_thread_raise_an_error_while_a_loop_runs():
    first, second = parts(), parts()
    for _ in first.rounds:
        next(iter(second.rounds))  # in the same thread
        with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="Only one thread"):
            pool.submit(lambda: next(iter(second.rounds))).result()
        break
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: next(iter(second.rounds)).number).result() == 0
