import copy
import io
import pickle

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils import common_functions
from torch.utils.checkpoint import checkpoint

from pml_xbml import functional
from pml_xbml.trunks import PrototypePooling


def global_average_pool(feature_maps):
    return torch.nn.AdaptiveAvgPool2d(1)(feature_maps).flatten(1)


class TestOutput:
    @pytest.mark.parametrize("shape", [(4, 8, 7, 7), (1, 8, 1, 1), (3, 8, 5, 2)])
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_average_is_global_average_pooling_to_the_bit(self, shape, memory_format, training, dtype):
        pooling = PrototypePooling(8, 5).to(dtype).train(training)
        maps = torch.randn(shape).to(dtype).to(memory_format=memory_format).requires_grad_()
        output, expected = pooling(maps), global_average_pool(maps)
        assert torch.equal(output, expected)
        weight = torch.randn_like(output)
        gradients = [torch.autograd.grad((value * weight).sum(), maps)[0] for value in (output, expected)]
        assert torch.equal(*gradients)

    def test_what_follows_may_work_in_place(self):
        feature_maps = torch.randn(4, 8, 3, 3, requires_grad=True)
        gradients = []
        for pool in (PrototypePooling(8, 5), global_average_pool):
            torch.nn.functional.relu(pool(feature_maps), inplace=True).square().sum().backward()
            gradients.append(feature_maps.grad.clone())
            feature_maps.grad = None
        assert torch.equal(*gradients)

    def test_average_of_tokens_is_their_mean(self):
        tokens = torch.randn(4, 9, 8)
        assert torch.equal(PrototypePooling(8)(tokens), tokens.mean(1))

    @pytest.mark.parametrize("training", [True, False])
    def test_prototypes_output_is_the_convex_combination(self, training):
        pooling = PrototypePooling(8, 5, output="prototypes").double().train(training)
        maps = torch.randn(4, 8, 3, 3, dtype=torch.float64)
        z = functional.histograms(maps.flatten(2).transpose(1, 2), pooling.prototypes)
        expected = sum(z[:, i, None] * pooling.prototypes[i] for i in range(5))
        torch.testing.assert_close(pooling(maps), expected)

    def test_maps_and_tokens_give_the_same(self):
        pooling = PrototypePooling(8, 5)
        maps = torch.randn(4, 8, 3, 3)
        from_maps = pooling(maps), pooling.histograms
        from_tokens = pooling(maps.flatten(2).transpose(1, 2)), pooling.histograms
        torch.testing.assert_close(from_maps, from_tokens)


class TestHistograms:
    def test_are_those_of_the_last_training_forward(self):
        pooling = PrototypePooling(8, 5, temperature=0.3, similarity="dot")
        assert pooling.histograms is None
        maps = torch.randn(4, 8, 3, 3)
        pooling(maps)
        expected = functional.histograms(maps.flatten(2).transpose(1, 2), pooling.prototypes, 0.3, "dot")
        torch.testing.assert_close(pooling.histograms, expected)
        pooling.eval()(maps)
        assert pooling.histograms is None

    def test_are_there_in_evaluation_mode_on_request(self):
        pooling = PrototypePooling(8, 5, eval_histograms=True).eval()
        pooling(torch.randn(4, 8, 3, 3))
        assert pooling.histograms.shape == (4, 5)

    def test_gradient_reaches_features_and_prototypes(self):
        pooling = PrototypePooling(8, 5)
        maps = torch.randn(4, 8, 3, 3, requires_grad=True)
        pooling(maps)
        pooling.histograms.square().sum().backward()
        assert pooling.prototypes.grad.abs().sum() > 0
        assert maps.grad.abs().sum() > 0

    def test_unused_they_leave_the_prototypes_a_gradient_of_zero(self):
        pooling = PrototypePooling(8, 5)
        pooling(torch.randn(4, 8, 3, 3)).sum().backward()
        assert torch.equal(pooling.prototypes.grad, torch.zeros(5, 8))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_are_float32_at_least(self, dtype):
        pooling = PrototypePooling(8, 5)
        with torch.autocast("cpu", dtype=dtype):
            pooling(torch.randn(4, 8, 3, 3).to(dtype))
        assert pooling.histograms.dtype == torch.float32
        torch.testing.assert_close(pooling.histograms.sum(1), torch.ones(4))

    def test_copies_and_pickles_leave_them_out(self):
        pooling = PrototypePooling(8, 5)
        pooling(torch.randn(4, 8, 3, 3))
        copies = [copy.deepcopy(pooling), pickle.loads(pickle.dumps(pooling))]
        buffer = io.BytesIO()
        torch.save(pooling, buffer)
        buffer.seek(0)
        copies.append(torch.load(buffer, weights_only=False))
        for copied in copies:
            assert copied.histograms is None
            assert torch.equal(copied.prototypes, pooling.prototypes)
            copied(torch.randn(2, 8, 3, 3))
            assert copied.histograms.shape == (2, 5)
        assert pooling.histograms is not None


class TestInitialization:
    def test_shifts_no_seed(self):
        state = torch.get_rng_state()
        PrototypePooling(8, 5)
        assert torch.equal(torch.get_rng_state(), state)

    def test_is_the_same_every_time(self):
        expected = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
        assert torch.equal(PrototypePooling(8, 5).prototypes, expected)

    def test_has_16_prototypes_by_default(self):
        pooling = PrototypePooling(8)
        assert pooling.prototypes.shape == (16, 8)
        assert (pooling.temperature, pooling.similarity) == (0.1, "cosine")

    def test_k_center_stores_raw_features_and_returns_the_radius_among_unit_vectors(self):
        pooling = PrototypePooling(8, 5).double()
        maps = torch.randn(6, 8, 4, 4, dtype=torch.float64) * torch.rand(6, 1, 4, 4, dtype=torch.float64)
        radius = pooling.init_prototypes(maps)
        features = maps.flatten(2).transpose(1, 2).flatten(0, 1)
        nearest = torch.cdist(pooling.prototypes, features).min(1).values
        torch.testing.assert_close(nearest, torch.zeros_like(nearest), atol=1e-7, rtol=0)
        units = features / features.norm(dim=1, keepdim=True)
        centers = pooling.prototypes / pooling.prototypes.norm(dim=1, keepdim=True)
        assert radius == pytest.approx(torch.cdist(units, centers).min(1).values.max().item(), abs=1e-7)

    @pytest.mark.parametrize("shape", [(6, 8, 4, 4), (6, 16, 8), (96, 8)])
    def test_takes_maps_tokens_and_single_features(self, shape):
        assert 0 <= PrototypePooling(8, 5).init_prototypes(torch.randn(shape)) <= 2

    def test_certificate_bounds_the_gap_of_lemma_1(self):
        pooling = PrototypePooling(8, 20, temperature=1e-6).double()
        maps = torch.randn(6, 8, 4, 4, dtype=torch.float64)
        radius = pooling.init_prototypes(maps)
        pooling(maps)
        units = functional.l2_normalize(maps.flatten(2).transpose(1, 2))
        gap = pooling.histograms @ functional.l2_normalize(pooling.prototypes) - units.mean(1)
        assert gap.norm(dim=1).max() <= radius + 1e-9

    def test_leaves_out_features_of_norm_zero(self):
        features = torch.zeros(100, 8)
        features[:5] = torch.randn(5, 8)
        pooling = PrototypePooling(8, 5)
        assert pooling.init_prototypes(features) == pytest.approx(0, abs=1e-6)
        assert (pooling.prototypes.norm(dim=1) > 0).all()

    @pytest.mark.parametrize(
        ("features", "message"),
        [
            (torch.full((9, 8), torch.nan), "must be finite"),
            (torch.randn(4, 8), r"num_prototypes = 5 local features other than zero, got 4"),
            (torch.ones(40, 8), "found 1 distinct directions among 40"),
            (torch.randn(40, 7), r"got a tensor of shape \(40, 7\)"),
            (torch.randn(8), r"got a tensor of shape \(8,\)"),
        ],
    )
    def test_says_what_is_wrong_with_features(self, features, message):
        with pytest.raises(ValueError, match=message):
            PrototypePooling(8, 5).init_prototypes(features)


class TestHistogramsOf:
    """A loss asks for the histograms of the images whose embeddings it got."""

    @pytest.fixture(params=["average", "prototypes"])
    def pooling(self, request):
        return PrototypePooling(8, 5, output=request.param)

    @pytest.fixture
    def embedder(self):
        return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(inplace=True), torch.nn.Linear(8, 3))

    def test_needs_a_forward(self, pooling):
        with pytest.raises(ValueError, match="no forward has run yet"):
            pooling.histograms_of(torch.zeros(4, 8))

    def test_needs_a_forward_in_training_mode_where_a_gradient_is_wanted(self, pooling, embedder):
        pooling(torch.randn(4, 8, 3, 3))
        embeddings = embedder(pooling.eval()(torch.randn(4, 8, 3, 3)))
        with pytest.raises(ValueError, match=r"ran in evaluation mode.*eval_histograms=True"):
            pooling.histograms_of(embeddings)

    def test_there_are_none_in_evaluation_without_gradient(self, pooling, embedder):
        with torch.no_grad():
            embeddings = embedder(pooling.eval()(torch.randn(4, 8, 3, 3)))
        assert pooling.histograms_of(embeddings) is None
        copied = copy.deepcopy(pooling)
        with pytest.raises(ValueError, match="no forward has run yet"):
            copied.histograms_of(embeddings)
        embeddings = embedder(pooling.train()(torch.randn(4, 8, 3, 3)))
        assert pooling.histograms_of(embeddings) is pooling.histograms

    def test_are_there_in_evaluation_on_request(self, embedder):
        pooling = PrototypePooling(8, 5, eval_histograms=True).eval()
        with torch.no_grad():
            embeddings = embedder(pooling(torch.randn(4, 8, 3, 3)))
        assert pooling.histograms_of(embeddings).shape == (4, 5)

    def test_refuses_embeddings_of_an_earlier_forward(self, pooling, embedder):
        first, second = (embedder(pooling(torch.randn(4, 8, 3, 3))) for _ in range(2))
        with pytest.raises(ValueError, match="must come from the last forward of the trunk"):
            pooling.histograms_of(first)
        assert pooling.histograms_of(second) is pooling.histograms

    def test_refuses_them_after_their_own_loss_too(self, pooling):
        first = pooling(torch.randn(4, 8, 3, 3))
        pooling.histograms_of(first)
        second = pooling(torch.randn(4, 8, 3, 3))
        with pytest.raises(ValueError, match="must come from the last forward"):
            pooling.histograms_of(first)
        pooling.histograms_of(second)

    def test_batches_that_were_skipped_or_kept_do_no_harm(self, pooling, embedder):
        kept = []
        for number in range(4):
            embeddings = embedder(pooling(torch.randn(4, 8, 3, 3)))
            kept.append(embeddings)
            if number == 1:
                continue
            pooling.histograms_of(embeddings).sum().backward(retain_graph=True)
            embeddings.sum().backward()

    def test_two_losses_may_ask(self, pooling):
        embeddings = pooling(torch.randn(4, 8, 3, 3))
        assert pooling.histograms_of(embeddings) is pooling.histograms_of(embeddings)

    @pytest.mark.parametrize(
        "detach", [torch.Tensor.detach, lambda output: output.detach().requires_grad_()], ids=["", "leaf"]
    )
    def test_embeddings_without_a_way_to_the_pooling_are_taken(self, pooling, detach):
        assert pooling.histograms_of(detach(pooling(torch.randn(4, 8, 3, 3)))) is pooling.histograms

    def test_runs_that_share_their_images_graph_are_told_apart(self, embedder):
        """As with a learned augmentation: what both passes read is no sign that they are one."""
        pooling = PrototypePooling(8, 5)
        images = torch.randn(4, 8, 3, 3, requires_grad=True)
        first, second = pooling(images), pooling(images)
        with pytest.raises(ValueError, match="must come from the last forward"):
            pooling.histograms_of(embedder(first))
        pooling.histograms_of(embedder(second))

    def test_a_frozen_backbone_needs_prototypes_that_learn(self, embedder):
        pooling = PrototypePooling(8, 5, eval_histograms=True).eval()
        first, second = (embedder(pooling(torch.randn(4, 8, 3, 3))) for _ in range(2))
        with pytest.raises(ValueError, match="must come from the last forward"):
            pooling.histograms_of(first)
        pooling.histograms_of(second)

    @pytest.mark.parametrize("fullgraph", [True, False])
    def test_compiled_trunks_are_checked_too(self, pooling, embedder, fullgraph):
        backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), pooling)
        compiled = torch.compile(backbone, backend="aot_eager", fullgraph=fullgraph)
        first, second = (embedder(compiled(torch.randn(4, 3, 4, 4))) for _ in range(2))
        with pytest.raises(ValueError, match="must come from the last forward"):
            pooling.histograms_of(first)
        assert pooling.histograms_of(second) is pooling.histograms
        torch._dynamo.reset()

    def test_refuses_reentrant_checkpointing_and_takes_the_other(self):
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), PrototypePooling(8, 5))
        images = torch.randn(4, 3, 4, 4, requires_grad=True)
        output = checkpoint(net, images, use_reentrant=True)
        with pytest.raises(ValueError, match="use_reentrant=False"):
            net[1].histograms_of(output)
        for _ in range(3):
            net.zero_grad()
            output = checkpoint(net, images, use_reentrant=False)
            (output.sum() + net[1].histograms_of(output).square().sum()).backward()
        with_checkpoint = net[1].prototypes.grad.clone()
        net.zero_grad()
        output = net(images)
        (output.sum() + net[1].histograms_of(output).square().sum()).backward()
        torch.testing.assert_close(with_checkpoint, net[1].prototypes.grad)

    def test_frozen_prototypes_need_no_gradient(self):
        pooling = PrototypePooling(8, 5, eval_histograms=True).eval().requires_grad_(False)
        output = pooling(torch.randn(4, 8, 3, 3))
        assert not pooling.histograms_of(output).requires_grad


class TestRecords:
    def test_are_made_on_request_or_by_the_default_of_pytorch_metric_learning(self, monkeypatch):
        assert PrototypePooling(8, 5)._record_these_stats == []
        assert "perplexity" in PrototypePooling(8, 5, collect_stats=True)._record_these_stats
        monkeypatch.setattr(common_functions, "COLLECT_STATS", True)
        assert PrototypePooling(8, 5).collect_stats
        assert not PrototypePooling(8, 5, collect_stats=False).collect_stats

    def test_are_zero_before_the_first_batch_and_never_part_of_a_graph_or_checkpoint(self):
        pooling = PrototypePooling(8, 5, collect_stats=True)
        names = pooling._record_these_stats
        assert [getattr(pooling, name) for name in names] == [0] * len(names)
        pooling(torch.randn(4, 8, 3, 3, requires_grad=True))
        assert not any(getattr(pooling, name).requires_grad for name in names)
        assert list(pooling.state_dict()) == ["prototypes"]

    def test_dead_prototypes_are_those_that_no_feature_has_matched_for_20_batches(self):
        pooling = PrototypePooling(2, 3, collect_stats=True)
        pooling.prototypes.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        features = torch.tensor([[[1.0, 0.1], [0.1, 1.0]]])
        dead = []
        for _ in range(21):
            pooling(features)
            dead.append(int(pooling.dead_prototypes))
        assert dead == [0] * 19 + [1, 1]


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"num_features": 0}, ValueError, "num_features must be at least 1, got 0"),
            ({"num_features": 2.0}, TypeError, "num_features must be an integer, got 2.0"),
            ({"num_prototypes": -1}, ValueError, "num_prototypes must be at least 1, got -1"),
            ({"num_prototypes": True}, TypeError, "num_prototypes must be an integer, got True"),
            ({"temperature": 0}, ValueError, "temperature must be positive and finite, got 0"),
            ({"temperature": "warm"}, TypeError, "temperature must be a number, got 'warm'"),
            ({"temperature": float("nan")}, ValueError, "temperature must be positive and finite, got nan"),
            ({"similarity": "l2"}, ValueError, "similarity must be one of 'cosine', 'dot', got 'l2'"),
            ({"output": "max"}, ValueError, "output must be one of 'average', 'prototypes', got 'max'"),
        ],
    )
    def test_is_named_at_construction(self, options, error, message):
        with pytest.raises(error, match=message):
            PrototypePooling(**({"num_features": 8} | options))

    def test_integers_of_numpy_are_integers(self):
        assert PrototypePooling(np.int64(8), np.int32(5)).prototypes.shape == (5, 8)

    @pytest.mark.parametrize("shape", [(4, 8), (4, 7, 3, 3), (4, 3, 3, 8), (4, 8, 9), (8, 3, 3, 3, 3)])
    @pytest.mark.parametrize("training", [True, False])
    def test_shapes_are_named(self, shape, training):
        with pytest.raises(ValueError, match=r"\(B, 8, H, W\) or tokens \(B, N, 8\), got a tensor of shape"):
            PrototypePooling(8).train(training)(torch.randn(shape))

    @pytest.mark.parametrize("training", [True, False])
    def test_an_empty_batch_passes_and_maps_without_positions_do_not(self, training):
        pooling = PrototypePooling(8).train(training)
        assert pooling(torch.randn(0, 8, 3, 3)).shape == (0, 8)
        for shape in ((4, 8, 0, 3), (4, 8, 3, 0), (4, 0, 8)):
            with pytest.raises(ValueError, match="which has no positions to average"):
                pooling(torch.randn(shape))

    def test_replicas_of_data_parallel_are_refused(self):
        replica = PrototypePooling(8)._replicate_for_data_parallel()
        with pytest.raises(ValueError, match="DistributedDataParallel"):
            replica(torch.randn(4, 8, 3, 3))
        assert replica.eval()(torch.randn(4, 8, 3, 3)).shape == (4, 8)


def test_assignments_tell_where_each_prototype_is():
    pooling = PrototypePooling(2, 2)
    pooling.prototypes.data = torch.eye(2)
    maps = torch.zeros(1, 2, 2, 4)
    maps[:, 0, :, :2] = 3.0
    maps[:, 1, :, 2:] = 0.5
    assigned = pooling.assignments(maps)
    assert assigned.shape == (1, 2, 2, 4)
    assert (assigned[0, 0, :, :2] > 0.99).all()
    assert (assigned[0, 0, :, 2:] < 0.01).all()
    assert pooling.assignments(torch.randn(3, 5, 2)).shape == (3, 2, 5)
