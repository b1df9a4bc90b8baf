import copy
import logging
import pickle
import types

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils import distributed as pml_distributed
from pytorch_metric_learning.utils import loss_and_miner_utils
from sklearn.linear_model import Ridge

from pml_xbml import functional
from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.samplers import DisjointClassPairSampler
from pml_xbml.trunks import PrototypePooling

LABELS = torch.arange(16) // 4


def batch(dtype=torch.float64, requires_grad=True):
    embeddings = torch.randn(16, 6, dtype=dtype, requires_grad=requires_grad)
    histograms = torch.softmax(torch.randn(16, 5, dtype=dtype), dim=1).requires_grad_(requires_grad)
    return embeddings, histograms


def expressed_by_sklearn(embeddings, histograms, first_half, ridge=0.05, normalize_embeddings=True):
    """Ŷ by two ridge regressions with an intercept, of the second half on the first and of that on it."""
    y, z = embeddings.detach().double(), histograms.detach().double()
    y = y / y.norm(dim=1, keepdim=True) if normalize_embeddings else y
    expressed = torch.empty_like(y)
    for side in (first_half, ~first_half):
        variance = z[~side].var(dim=0, correction=0).sum().item()
        model = Ridge(alpha=ridge * variance).fit(z[~side].numpy(), y[~side].numpy())
        expressed[side] = torch.from_numpy(model.predict(z[side].numpy())) - y[~side].mean(dim=0)
    return expressed


def cross_batch_term(embeddings, histograms, first_half, labels=LABELS, ridge=0.05, loss=None):
    normalizes = loss is None or loss.distance.normalize_embeddings
    expressed = expressed_by_sklearn(embeddings, histograms, first_half, ridge, normalizes)
    loss = losses.ContrastiveLoss(pos_margin=0, neg_margin=1) if loss is None else loss
    return loss(expressed, labels)


class TestFormula:
    @pytest.mark.parametrize("weight", [0.1, 0.5, 1.0])
    @pytest.mark.parametrize("ridge", [0.001, 0.05])
    @pytest.mark.parametrize("first_half", [LABELS < 2, LABELS % 2 == 0], ids=["in the middle", "dealt"])
    def test_value(self, weight, ridge, first_half):
        embeddings, histograms = batch()
        labels = torch.where(first_half, torch.arange(16) % 2, 2 + torch.arange(16) % 2)
        base = losses.TripletMarginLoss()
        expected = (1 - weight) * base(embeddings, labels)
        expected += weight * cross_batch_term(embeddings, histograms, first_half, labels, ridge)
        loss = CrossBatchPrototypeLoss(base, cross_batch_weight=weight, ridge=ridge)
        torch.testing.assert_close(loss(embeddings, labels, histograms=histograms), expected)

    def test_contrastive_loss_by_hand(self):
        """Of the pairs whose distance is beyond their margin, positive and negative ones apart."""
        embeddings, histograms = batch(requires_grad=False)
        expressed = torch.nn.functional.normalize(expressed_by_sklearn(embeddings, histograms, LABELS < 2))
        positive, negative = [], []
        for anchor in range(16):
            for other in range(16):
                if anchor != other:
                    distance = (expressed[anchor] - expressed[other]).norm()
                    same_class = LABELS[anchor] == LABELS[other]
                    (positive if same_class else negative).append(distance if same_class else 1 - distance)
        means = [
            torch.stack([value for value in values if value > 0]).mean() for values in (positive, negative)
        ]
        loss = CrossBatchPrototypeLoss(cross_batch_weight=1)
        torch.testing.assert_close(loss(embeddings, LABELS, histograms=histograms), sum(means))

    def test_the_embeddings_own_length_is_of_no_account(self):
        embeddings, histograms = batch()
        loss = CrossBatchPrototypeLoss(cross_batch_weight=1)
        torch.testing.assert_close(
            loss(embeddings * torch.rand(16, 1).double(), LABELS, histograms=histograms),
            loss(embeddings, LABELS, histograms=histograms),
        )

    def test_a_mean_that_all_embeddings_share_is_of_no_account(self):
        """Why the fit has an intercept."""
        embeddings, histograms = batch()
        raw = losses.ContrastiveLoss(distance=distances.LpDistance(normalize_embeddings=False))
        loss = CrossBatchPrototypeLoss(cross_batch_weight=1, expressed_loss=raw)
        torch.testing.assert_close(
            loss(embeddings + 10, LABELS, histograms=histograms),
            loss(embeddings, LABELS, histograms=histograms),
        )

    def test_without_histograms_each_embedding_stands_for_itself(self):
        embeddings, _ = batch()
        sources = torch.nn.functional.normalize(embeddings)
        expected = 0.7 * losses.ContrastiveLoss()(embeddings, LABELS)
        expected += 0.3 * cross_batch_term(embeddings, sources, LABELS < 2)
        torch.testing.assert_close(CrossBatchPrototypeLoss()(embeddings, LABELS), expected)

    def test_gradient_by_gradcheck(self):
        embeddings, histograms = batch()
        loss = CrossBatchPrototypeLoss(losses.NCALoss(), cross_batch_weight=0.5)
        assert torch.autograd.gradcheck(lambda y, z: loss(y, LABELS, histograms=z), (embeddings, histograms))

    def test_sub_losses_are_weighted_and_add_up(self):
        embeddings, histograms = batch()
        loss = CrossBatchPrototypeLoss(cross_batch_weight=0.3)
        terms = loss.compute_loss(embeddings, LABELS, None, None, None, histograms=histograms)
        assert list(terms) == loss.sub_loss_names() == ["metric_loss", "cross_batch_loss"]
        total = loss(embeddings, LABELS, histograms=histograms)
        torch.testing.assert_close(
            terms["metric_loss"]["losses"] + terms["cross_batch_loss"]["losses"], total
        )
        base = losses.ContrastiveLoss()(embeddings, LABELS)
        torch.testing.assert_close(terms["metric_loss"]["losses"], 0.7 * base)

    def test_swapping_the_halves_changes_nothing(self):
        embeddings, histograms = batch()
        loss = CrossBatchPrototypeLoss(cross_batch_weight=0.5)
        swap = torch.arange(16).roll(8)
        torch.testing.assert_close(
            loss(embeddings[swap], LABELS[swap], histograms=histograms[swap]),
            loss(embeddings, LABELS, histograms=histograms),
        )

    def test_permuting_within_the_halves_changes_nothing(self):
        embeddings, histograms = batch()
        loss = CrossBatchPrototypeLoss(cross_batch_weight=0.5)
        order = torch.cat([torch.randperm(8), 8 + torch.randperm(8)])
        torch.testing.assert_close(
            loss(embeddings[order], LABELS[order], histograms=histograms[order]),
            loss(embeddings, LABELS, histograms=histograms),
        )

    def test_classes_are_dealt_to_two_sides_where_the_batch_is_not_cut_in_the_middle(self):
        embeddings, histograms = batch()
        labels = torch.tensor([3, 0, 1, 3, 0, 1, 2, 2, 2, 3, 3, 0, 0, 1, 1, 2])
        expected = 0.7 * losses.ContrastiveLoss()(embeddings, labels)
        expected += 0.3 * cross_batch_term(embeddings, histograms, labels < 2, labels)
        torch.testing.assert_close(
            CrossBatchPrototypeLoss()(embeddings, labels, histograms=histograms), expected
        )

    def test_without_histograms_all_processes_make_the_same_halves(self, monkeypatch):
        monkeypatch.setattr(pml_distributed, "is_distributed", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
        embeddings, _ = batch()
        labels = torch.arange(16) // 2
        loss = CrossBatchPrototypeLoss(cross_batch_weight=1)
        sources = torch.nn.functional.normalize(embeddings)
        expected = cross_batch_term(embeddings, sources, torch.arange(16) % 4 < 2, labels)
        for own_first in ([0, 1, 2, 3], [1, 0, 2, 3], [2, 0, 1, 3], [3, 0, 1, 2]):
            rows = torch.arange(16).view(4, 4)[own_first].flatten()
            torch.testing.assert_close(loss(embeddings[rows], labels[rows]), expected)

    @pytest.mark.parametrize(
        ("world_size", "classes", "samples_a_class"),
        [(2, [0, 1, 3, 2], 4), (3, [0, 3, 1, 2], 5)],
        ids=["gathered", "not gathered, as three processes would leave a rest"],
    )
    def test_the_first_halves_of_all_processes_are_the_first_half(
        self, monkeypatch, world_size, classes, samples_a_class
    ):
        """Classes dealt by their labels would come to the halves {0, 1} and {2, 3}."""
        monkeypatch.setattr(pml_distributed, "is_distributed", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world_size)
        labels = torch.tensor(classes).repeat_interleave(samples_a_class)
        embeddings = torch.randn(len(labels), 6).double()
        first_half = (labels == 0) | (labels == 3)
        sources = torch.nn.functional.normalize(embeddings)
        expected = cross_batch_term(embeddings, sources, first_half, labels)
        torch.testing.assert_close(
            CrossBatchPrototypeLoss(cross_batch_weight=1)(embeddings, labels), expected
        )

    def test_histograms_that_do_not_fit_the_processes_are_refused(self, monkeypatch):
        monkeypatch.setattr(pml_distributed, "is_distributed", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
        embeddings, histograms = batch()
        with pytest.raises(ValueError, match="each of the 16 embeddings, got 8 rows"):
            CrossBatchPrototypeLoss()(embeddings, LABELS, histograms=histograms[:8])

    @pytest.mark.parametrize("labels", [LABELS / 4, (LABELS == 1) | (LABELS == 3)], ids=["float", "bool"])
    def test_labels_of_other_types_are_those_of_integers(self, labels):
        embeddings, histograms = batch()
        integers = (4 * labels).long()
        loss = CrossBatchPrototypeLoss(cross_batch_weight=0.5)
        expected = loss(embeddings, integers, histograms=histograms)
        assert torch.equal(loss(embeddings, labels, histograms=histograms), expected)

    def test_value_with_a_single_prototype(self):
        embeddings, _ = batch()
        histograms = torch.rand(16, 1).double()
        # All directions are one or the other; a loss without a margin has no ties there.
        smooth = losses.NCALoss()
        expected = cross_batch_term(embeddings, histograms, LABELS < 2, loss=smooth)
        loss = CrossBatchPrototypeLoss(cross_batch_weight=1, expressed_loss=smooth)
        torch.testing.assert_close(loss(embeddings, LABELS, histograms=histograms), expected)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_embeddings_enter_the_fit_in_float32_under_autocast(self, dtype):
        """Norms of 1,000 have squares that float16 cannot hold."""
        embeddings, histograms = batch(torch.float32, requires_grad=False)
        embeddings *= 1000 / embeddings.norm(dim=1, keepdim=True)
        loss = CrossBatchPrototypeLoss(cross_batch_weight=1)
        halves = functional.Halves(LABELS < 2)
        expected = loss._cross_batch_loss(embeddings, LABELS, histograms, halves)
        with torch.autocast("cpu", dtype=dtype):
            got = loss._cross_batch_loss(embeddings, LABELS, histograms, halves)
        assert torch.equal(got, expected)

    @pytest.mark.parametrize("weight", [0.1, 1.0])
    def test_one_class_leaves_a_zero_that_keeps_the_graph(self, weight):
        embeddings, histograms = batch()
        labels = torch.zeros(16)
        loss = CrossBatchPrototypeLoss(cross_batch_weight=weight)
        value = loss(embeddings, labels, histograms=histograms)
        torch.testing.assert_close(value, (1 - weight) * losses.ContrastiveLoss()(embeddings, labels))
        value.backward()
        assert embeddings.grad is not None


def cosine_contrastive_loss():
    # torch has no Euclidean distances in bfloat16 on the CPU.
    return losses.ContrastiveLoss(pos_margin=1, neg_margin=0, distance=distances.CosineSimilarity())


class TestZeroWeight:
    bases = pytest.mark.parametrize(
        "make_base",
        [losses.MultiSimilarityLoss, lambda: make_base("ProxyAnchorLoss"), cosine_contrastive_loss],
        ids=["MultiSimilarityLoss", "ProxyAnchorLoss", "ContrastiveLoss"],
    )

    @bases
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
    def test_leaves_value_dtype_and_gradient_of_the_base_to_the_bit(self, make_base, dtype):
        embeddings, histograms = batch(dtype)
        plain = make_base()
        wrapped = CrossBatchPrototypeLoss(copy.deepcopy(plain), cross_batch_weight=0)
        self.check_identical(plain, wrapped, embeddings, histograms)

    @bases
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_under_autocast_too(self, make_base, dtype):
        embeddings, histograms = batch(torch.float32)
        plain = make_base()
        wrapped = CrossBatchPrototypeLoss(copy.deepcopy(plain), cross_batch_weight=0)
        layer = torch.nn.Linear(6, 6)
        with torch.autocast("cpu", dtype=dtype):
            self.check_identical(plain, wrapped, layer(embeddings), histograms)

    def check_identical(self, plain, wrapped, embeddings, histograms):
        expected, got = plain(embeddings, LABELS), wrapped(embeddings, LABELS, histograms=histograms)
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)
        expected_gradients, gradients = (
            torch.autograd.grad(value, [embeddings, *loss.parameters()], retain_graph=True)
            for value, loss in ((expected, plain), (got, wrapped))
        )
        # The embeddings', and those of proxies where there are.
        assert len(gradients) == 1 + hasattr(plain, "proxies")
        assert all(map(torch.equal, gradients, expected_gradients))


def proxies(loss_class, **kwargs):
    return lambda: loss_class(num_classes=4, embedding_size=6, **kwargs)


# Every loss of pytorch-metric-learning as a base; those without an entry are built without arguments.
SPECIAL_BASES = {
    "ArcFaceLoss": proxies(losses.ArcFaceLoss),
    "CosFaceLoss": proxies(losses.CosFaceLoss),
    "CrossBatchMemory": lambda: losses.CrossBatchMemory(losses.ContrastiveLoss(), 6, memory_size=48),
    "HistogramLoss": lambda: losses.HistogramLoss(n_bins=20),
    "LargeMarginSoftmaxLoss": proxies(losses.LargeMarginSoftmaxLoss),
    "MultipleLosses": lambda: losses.MultipleLosses([losses.ContrastiveLoss(), losses.TripletMarginLoss()]),
    "NormalizedSoftmaxLoss": proxies(losses.NormalizedSoftmaxLoss),
    "P2SGradLoss": lambda: losses.P2SGradLoss(descriptors_dim=6, num_classes=4),
    "ProxyAnchorLoss": proxies(losses.ProxyAnchorLoss),
    "ProxyNCALoss": proxies(losses.ProxyNCALoss),
    "RankedListLoss": lambda: losses.RankedListLoss(margin=0.4, Tn=10),
    "SoftTripleLoss": proxies(losses.SoftTripleLoss),
    "SphereFaceLoss": proxies(losses.SphereFaceLoss),
    "SubCenterArcFaceLoss": proxies(losses.SubCenterArcFaceLoss),
}
NO_LOSSES = {
    "BaseLossWrapper",
    "BaseMetricLossFunction",
    "EmbeddingRegularizerMixin",
    "WeightRegularizerMixin",
    "GenericPairLoss",
}
WITHOUT_LABELS = {
    "ManifoldLoss": lambda: losses.ManifoldLoss(l=6),
    "SelfSupervisedLoss": lambda: losses.SelfSupervisedLoss(losses.NTXentLoss()),
    "VICRegLoss": losses.VICRegLoss,
}
ALL_LOSSES = sorted(
    name
    for name, member in vars(losses).items()
    if isinstance(member, type) and name not in NO_LOSSES and name != "CrossBatchPrototypeLoss"
)


def make_base(name):
    return SPECIAL_BASES.get(name, getattr(losses, name))()


class TestEveryLossOfPML:
    def test_the_list_is_all_of_them(self):
        assert len(ALL_LOSSES) >= 38
        assert set(WITHOUT_LABELS) < set(ALL_LOSSES)

    @pytest.mark.parametrize("name", sorted(set(ALL_LOSSES) - set(WITHOUT_LABELS)))
    def test_works_as_a_base(self, name):
        torch.manual_seed(1)
        base = make_base(name)
        reference = copy.deepcopy(base)
        pooling = PrototypePooling(6, 5)
        loss = CrossBatchPrototypeLoss(base, pooling, cross_batch_weight=0.25)
        images = torch.randn(16, 6, 3, 3, requires_grad=True)
        embeddings = pooling(images)
        value = loss(embeddings, LABELS)
        assert value.isfinite()
        value.backward()
        assert images.grad.isfinite().all()
        assert pooling.prototypes.grad.abs().sum() > 0
        assert all(p.grad is not None for p in base.parameters())

        expected = 0.25 * cross_batch_term(embeddings, pooling.histograms, LABELS < 2).float()
        torch.manual_seed(1)
        expected = expected + 0.75 * reference(embeddings, LABELS)
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", sorted(WITHOUT_LABELS))
    def test_without_labels_are_refused(self, name):
        with pytest.raises(TypeError, match=f"class labels.* got {name}"):
            CrossBatchPrototypeLoss(WITHOUT_LABELS[name]())


class TestExpressedLoss:
    def test_takes_the_place_of_the_contrastive_loss(self):
        embeddings, histograms = batch()
        base = losses.ProxyAnchorLoss(num_classes=4, embedding_size=6).double()
        # Its distance decides how embeddings enter the fit.
        other = losses.ContrastiveLoss(distance=distances.LpDistance(normalize_embeddings=False))
        expected = 0.7 * base(embeddings, LABELS)
        expected += 0.3 * cross_batch_term(embeddings, histograms, LABELS < 2, loss=other)
        loss = CrossBatchPrototypeLoss(base, expressed_loss=other)
        torch.testing.assert_close(loss(embeddings, LABELS, histograms=histograms), expected)

    def test_may_be_a_loss_of_triplets(self):
        embeddings, histograms = batch()
        other = losses.TripletMarginLoss()
        loss = CrossBatchPrototypeLoss(cross_batch_weight=1, expressed_loss=other)
        expected = cross_batch_term(embeddings, histograms, LABELS < 2, loss=other)
        torch.testing.assert_close(loss(embeddings, LABELS, histograms=histograms), expected)


class TestTuplesAndReferences:
    """ℓ gets them; all expressed samples are compared, whatever comes."""

    @pytest.mark.parametrize("miner", [miners.MultiSimilarityMiner(), miners.TripletMarginMiner()])
    def test_a_miners_tuples(self, miner):
        embeddings, histograms = batch()
        tuples = miner(embeddings, LABELS)
        base = losses.TripletMarginLoss()
        expected = 0.7 * base(embeddings, LABELS, tuples)
        expected += 0.3 * cross_batch_term(embeddings, histograms, LABELS < 2)
        got = CrossBatchPrototypeLoss(base)(embeddings, LABELS, tuples, histograms=histograms)
        torch.testing.assert_close(got, expected)

    def test_references(self):
        embeddings, histograms = batch()
        references = {"ref_emb": torch.randn(9, 6).double(), "ref_labels": torch.arange(9) // 3}
        base = losses.ContrastiveLoss()
        expected = 0.7 * base(embeddings, LABELS, **references)
        expected += 0.3 * cross_batch_term(embeddings, histograms, LABELS < 2)
        got = CrossBatchPrototypeLoss(base)(embeddings, LABELS, histograms=histograms, **references)
        torch.testing.assert_close(got, expected)

    def test_references_need_labels_or_tuples(self):
        embeddings, histograms = batch()
        references = torch.randn(9, 6).double()
        base = losses.ContrastiveLoss()
        loss = CrossBatchPrototypeLoss(base, cross_batch_weight=0)
        with pytest.raises(ValueError, match=r"ref_labels must be given for the ref_emb of shape \(9, 6\)"):
            loss(embeddings, LABELS, ref_emb=references, histograms=histograms)
        pairs = tuple(torch.tensor(indices) for indices in ([0, 1], [2, 8], [0, 1], [4, 5]))
        got = loss(embeddings, LABELS, pairs, ref_emb=references, histograms=histograms)
        torch.testing.assert_close(got, base(embeddings, LABELS, pairs, ref_emb=references))

    @pytest.mark.parametrize("name", ["CrossBatchMemory", "MultipleLosses"])
    def test_references_are_refused_by_bases_that_take_none(self, name):
        embeddings, histograms = batch()
        loss = CrossBatchPrototypeLoss(make_base(name))
        with pytest.raises(
            ValueError, match=rf"ref_emb must be left out with {name} as loss, got one of shape \(16, 6\)"
        ):
            loss(embeddings, LABELS, ref_emb=embeddings, ref_labels=LABELS, histograms=histograms)

    @pytest.mark.parametrize("references", [False, True])
    def test_pairs_of_all_samples_are_made_once_for_both_terms(self, monkeypatch, references):
        embeddings, histograms = batch()
        arguments = (
            {"ref_emb": torch.randn(9, 6).double(), "ref_labels": torch.arange(9)} if references else {}
        )
        made = []
        make = loss_and_miner_utils.get_all_pairs_indices
        monkeypatch.setattr(
            loss_and_miner_utils,
            "get_all_pairs_indices",
            lambda *labels: made.append(labels) or make(*labels),
        )
        CrossBatchPrototypeLoss()(embeddings, LABELS, histograms=histograms, **arguments)
        # References make other pairs.
        assert len(made) == 1 + references

    def test_expressed_embeddings_never_enter_a_memory(self):
        embeddings, histograms = batch(torch.float32)
        memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), 6, memory_size=48)
        reference = copy.deepcopy(memory)
        loss = CrossBatchPrototypeLoss(memory)
        for _ in range(2):
            expected = 0.7 * reference(embeddings, LABELS)
            expected += 0.3 * cross_batch_term(embeddings, histograms, LABELS < 2).float()
            torch.testing.assert_close(loss(embeddings, LABELS, histograms=histograms), expected)
        assert memory.queue_idx == 32
        assert torch.equal(memory.embedding_memory, reference.embedding_memory)

    def test_miners_and_weights_of_nested_multiple_losses(self):
        class CountingMiner(miners.TripletMarginMiner):
            calls = 0

            def mine(self, *args):
                self.calls += 1
                return super().mine(*args)

        embeddings, histograms = batch()
        miner = CountingMiner()
        parts = losses.ContrastiveLoss(), losses.TripletMarginLoss()
        inner = losses.MultipleLosses([parts[1]], miners=[miner], weights=[3])
        base = losses.MultipleLosses([parts[0], inner], weights=[0.5, 7])
        tuples = miners.TripletMarginMiner()(embeddings, LABELS)
        expected = 0.7 * (0.5 * parts[0](embeddings, LABELS) + 21 * parts[1](embeddings, LABELS, tuples))
        expected += 0.3 * cross_batch_term(embeddings, histograms, LABELS < 2)
        got = CrossBatchPrototypeLoss(base)(embeddings, LABELS, histograms=histograms)
        torch.testing.assert_close(got, expected)
        assert miner.calls == 1

    @pytest.mark.parametrize("is_nested", [False, True])
    def test_tuples_are_refused_beside_miners_of_multiple_losses(self, is_nested):
        embeddings, histograms = batch()
        base = losses.MultipleLosses([losses.TripletMarginLoss()], miners=[miners.TripletMarginMiner()])
        loss = CrossBatchPrototypeLoss(losses.MultipleLosses([base]) if is_nested else base)
        tuples = miners.TripletMarginMiner()(embeddings, LABELS)
        with pytest.raises(ValueError, match=r"indices_tuple must be left out when .* got one of 3 tensors"):
            loss(embeddings, LABELS, tuples, histograms=histograms)

    def test_a_memory_inside_multiple_losses(self):
        embeddings, histograms = batch(torch.float32)
        memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), 6, memory_size=48)
        base = losses.MultipleLosses(
            {"memory": memory, "triplet": losses.TripletMarginLoss()}, weights={"memory": 2, "triplet": 0.5}
        )
        expected = 0.7 * copy.deepcopy(base)(embeddings, LABELS)
        expected += 0.3 * cross_batch_term(embeddings, histograms, LABELS < 2).float()
        got = CrossBatchPrototypeLoss(base)(embeddings, LABELS, histograms=histograms)
        torch.testing.assert_close(got, expected)
        assert memory.queue_idx == 16

    def test_inside_multiple_losses(self):
        embeddings, _ = batch()
        loss = losses.MultipleLosses([CrossBatchPrototypeLoss(), losses.TripletMarginLoss()])
        expected = CrossBatchPrototypeLoss()(embeddings, LABELS) + losses.TripletMarginLoss()(
            embeddings, LABELS
        )
        torch.testing.assert_close(loss(embeddings, LABELS), expected)

    @pytest.mark.parametrize(
        "reducer", [reducers.SumReducer(), reducers.AvgNonZeroReducer(), reducers.ThresholdReducer(low=0.1)]
    )
    @pytest.mark.parametrize(
        "distance", [distances.CosineSimilarity(), distances.LpDistance(p=1), distances.SNRDistance()]
    )
    def test_reducers_and_distances_of_the_base(self, reducer, distance):
        embeddings, histograms = batch()
        base = losses.TripletMarginLoss(reducer=reducer, distance=distance)
        expected = 0.7 * base(embeddings, LABELS)
        expected += 0.3 * cross_batch_term(embeddings, histograms, LABELS < 2)
        torch.testing.assert_close(
            CrossBatchPrototypeLoss(base)(embeddings, LABELS, histograms=histograms), expected
        )

    def test_embedding_regularizer_is_added_once(self):
        embeddings, histograms = batch()
        regularizer = regularizers.LpRegularizer()
        plain = CrossBatchPrototypeLoss()
        loss = CrossBatchPrototypeLoss(embedding_regularizer=regularizer, embedding_reg_weight=0.5)
        expected = plain(embeddings, LABELS, histograms=histograms) + 0.5 * regularizer(embeddings)
        torch.testing.assert_close(loss(embeddings, LABELS, histograms=histograms), expected)
        assert loss.sub_loss_names() == ["metric_loss", "cross_batch_loss", "embedding_reg_loss"]


class TestPooling:
    def test_takes_the_histograms_of_the_last_forward(self):
        pooling = PrototypePooling(6, 5)
        loss = CrossBatchPrototypeLoss(pooling=pooling)
        embeddings = pooling(torch.randn(16, 6, 3, 3))
        got = loss(embeddings, LABELS)
        torch.testing.assert_close(got, loss(embeddings, LABELS, histograms=pooling.histograms))

    def test_raises_without_them(self):
        pooling = PrototypePooling(6, 5)
        loss = CrossBatchPrototypeLoss(pooling=pooling)
        embeddings, _ = batch()
        with pytest.raises(ValueError, match="no forward has run yet"):
            loss(embeddings, LABELS)
        pooling.eval()(torch.randn(16, 6, 3, 3))
        with pytest.raises(ValueError, match="evaluation mode"):
            loss(embeddings, LABELS)

    def test_evaluation_without_a_gradient_gives_the_metric_loss_alone_and_says_so_once(self, caplog):
        pooling = PrototypePooling(6, 5).eval()
        loss = CrossBatchPrototypeLoss(pooling=pooling, cross_batch_weight=0.5, collect_stats=True)
        embedder = torch.nn.Linear(6, 6)
        for _ in range(2):
            with torch.no_grad():
                embeddings = embedder(pooling(torch.randn(16, 6, 3, 3)))
                got = loss(embeddings, LABELS)
            assert torch.equal(got, losses.ContrastiveLoss()(embeddings, LABELS))
        assert (loss.metric_loss, loss.cross_batch_loss) == (got, 0)
        assert loss.num_batches == 0
        with pytest.raises(ValueError, match="the last forward ran in evaluation mode"):
            loss(embedder(pooling(torch.randn(16, 6, 3, 3))), LABELS)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "ran in evaluation mode" in caplog.text

    def test_evaluation_at_weight_zero_has_nothing_to_say(self, caplog):
        pooling = PrototypePooling(6, 5).eval()
        loss = CrossBatchPrototypeLoss(pooling=pooling, cross_batch_weight=0)
        with torch.no_grad():
            loss(pooling(torch.randn(16, 6, 3, 3)), LABELS)
        assert not caplog.records

    def test_evaluation_with_histograms_gives_both_terms(self, caplog):
        pooling = PrototypePooling(6, 5, eval_histograms=True).eval()
        loss = CrossBatchPrototypeLoss(pooling=pooling, cross_batch_weight=0.5)
        with torch.no_grad():
            embeddings = pooling(torch.randn(16, 6, 3, 3))
            assert loss(embeddings, LABELS) == loss(embeddings, LABELS, histograms=pooling.histograms)
        assert loss(embeddings, LABELS) != losses.ContrastiveLoss()(embeddings, LABELS)
        assert not caplog.records

    def test_training_without_a_gradient_gives_both_terms(self):
        pooling = PrototypePooling(6, 5)
        loss = CrossBatchPrototypeLoss(pooling=pooling, cross_batch_weight=0.5)
        with torch.no_grad():
            embeddings = pooling(torch.randn(16, 6, 3, 3))
            assert loss(embeddings, LABELS) == loss(embeddings, LABELS, histograms=pooling.histograms)

    def test_is_no_submodule(self):
        pooling = PrototypePooling(6, 5)
        loss = CrossBatchPrototypeLoss(losses.ProxyAnchorLoss(4, 6), pooling=pooling)
        assert loss.pooling is pooling
        assert [name for name, _ in loss.named_parameters()] == ["loss.proxies"]
        assert list(loss.state_dict()) == ["loss.proxies"]
        assert pooling not in list(loss.modules())

    def test_a_copy_of_trunk_and_loss_belongs_together(self):
        pooling = PrototypePooling(6, 5)
        pooling(torch.randn(16, 6, 3, 3))
        parts = {"loss": CrossBatchPrototypeLoss(pooling=pooling), "trunk": pooling}
        for copied in (copy.deepcopy(parts), pickle.loads(pickle.dumps(parts))):
            assert copied["loss"].pooling is copied["trunk"]
            copied["loss"](copied["trunk"](torch.randn(16, 6, 3, 3)), LABELS).backward()

    def test_is_found_behind_parallel_wrappers_and_may_be_anything_with_histograms(self):
        _, histograms = batch()
        holder = types.SimpleNamespace(histograms=histograms)
        wrapper = types.SimpleNamespace(module=holder)
        embeddings, _ = batch()
        expected = CrossBatchPrototypeLoss()(embeddings, LABELS, histograms=histograms)
        assert CrossBatchPrototypeLoss(pooling=wrapper)(embeddings, LABELS) == expected
        holder.histograms = None
        with pytest.raises(ValueError, match="pooling must hold histograms, got a SimpleNamespace with None"):
            CrossBatchPrototypeLoss(pooling=wrapper)(embeddings, LABELS)

    def test_warns_once_through_the_logger_of_pml_when_there_is_none(self, caplog):
        embeddings, _ = batch()
        loss = CrossBatchPrototypeLoss()
        with caplog.at_level(logging.WARNING, logger=c_f.LOGGER_NAME):
            loss(embeddings, LABELS)
            loss(embeddings, LABELS)
        assert sum("stands for itself" in record.message for record in caplog.records) == 1

    def test_has_nothing_to_say_at_weight_zero(self, caplog):
        embeddings, _ = batch()
        CrossBatchPrototypeLoss(cross_batch_weight=0)(embeddings, LABELS)
        assert not caplog.records

    def test_is_found_behind_several_wrappers(self):
        embeddings, histograms = batch()
        holder = types.SimpleNamespace(histograms=histograms)
        wrapper = types.SimpleNamespace(module=types.SimpleNamespace(module=holder))
        expected = CrossBatchPrototypeLoss()(embeddings, LABELS, histograms=histograms)
        assert CrossBatchPrototypeLoss(pooling=wrapper)(embeddings, LABELS) == expected


class TestExpress:
    @pytest.mark.parametrize("normalizes", [False, True])
    def test_is_what_the_loss_compares_and_leaves_the_records_alone(self, normalizes):
        embeddings, histograms = batch()
        contrastive = losses.ContrastiveLoss(distance=distances.LpDistance(normalize_embeddings=normalizes))
        loss = CrossBatchPrototypeLoss(cross_batch_weight=1, expressed_loss=contrastive, collect_stats=True)
        value = loss(embeddings, LABELS, histograms=histograms)
        recorded = loss.transfer_r2
        expressed, first_half = loss.express(embeddings, LABELS, histograms)
        assert torch.equal(first_half, LABELS < 2)
        assert not expressed.requires_grad
        assert not recorded.requires_grad
        torch.testing.assert_close(contrastive(expressed, LABELS), value)
        loss.express(embeddings.flip(0), LABELS, histograms)
        assert loss.transfer_r2 is recorded


class TestDealtClasses:
    """Batches whose first and second half share a class: other halves are made, and one warning says so."""

    def messages(self, caplog, labels, **options):
        loss = CrossBatchPrototypeLoss(**options)
        for _ in range(2):
            embeddings = torch.randn(len(labels), 6)
            loss(embeddings, labels, histograms=torch.rand(len(labels), 5))
        return [record.getMessage() for record in caplog.records]

    def batches(self, batch_size):
        labels = torch.arange(40) // 4 % 10
        sampler = DisjointClassPairSampler(labels, m=4, batch_size=16, length_before_new_iter=80, seed=0)
        return torch.utils.data.DataLoader(labels, batch_size=batch_size, sampler=sampler)

    def test_batches_of_another_size_than_the_samplers(self, caplog):
        loss = CrossBatchPrototypeLoss()
        for labels in self.batches(20):
            loss(torch.randn(20, 6), labels, histograms=torch.rand(20, 5))
        (record,) = caplog.records
        assert record.name == c_f.LOGGER_NAME
        assert record.levelname == "WARNING"
        assert "half of a batch of 20 samples share a class" in record.getMessage()
        assert "the DataLoader's batch_size must be the sampler's" in record.getMessage()

    def test_not_for_the_samplers_batches(self, caplog):
        loss = CrossBatchPrototypeLoss()
        for labels in self.batches(16):
            loss(torch.randn(16, 6), labels, histograms=torch.rand(16, 5))
        assert not caplog.records

    @pytest.mark.parametrize(
        "labels", [[0, 1, 0, 1], [0, 1, 1, 0], [0, 0, 1]], ids=["shuffled", "mirrored", "an odd number"]
    )
    def test_once_for_other_batches(self, caplog, labels):
        assert len(self.messages(caplog, torch.tensor(labels))) == 1

    def test_not_for_one_class(self, caplog):
        assert not self.messages(caplog, torch.zeros(4))

    def test_not_at_weight_zero(self, caplog):
        assert not self.messages(caplog, torch.tensor([0, 1, 0, 1]), cross_batch_weight=0)


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"cross_batch_weight": -0.1}, ValueError, r"cross_batch_weight must lie in \[0, 1\], got -0.1"),
            ({"cross_batch_weight": 1.1}, ValueError, r"cross_batch_weight must lie in \[0, 1\], got 1.1"),
            ({"cross_batch_weight": float("nan")}, ValueError, "got nan"),
            ({"ridge": 0}, ValueError, "ridge must be positive and finite, got 0"),
            ({"ridge": -1.0}, ValueError, "ridge must be positive and finite, got -1.0"),
            ({"ridge": float("inf")}, ValueError, "ridge must be positive and finite, got inf"),
            ({"cross_batch_weight": "0.1"}, TypeError, "cross_batch_weight must be a number, got '0.1'"),
            ({"cross_batch_weight": True}, TypeError, "cross_batch_weight must be a number, got True"),
            ({"ridge": None}, TypeError, "ridge must be a number, got None"),
            ({"distance": distances.LpDistance()}, ValueError, "a distance belongs to loss"),
            ({"reducer": reducers.MeanReducer()}, ValueError, "a reducer belongs to loss"),
            ({"loss": torch.nn.MSELoss()}, TypeError, "must be a loss of pytorch-metric-learning.*MSELoss"),
            ({"loss": "ContrastiveLoss"}, TypeError, "must be a loss of pytorch-metric-learning"),
            (
                {"loss": pml_distributed.DistributedLossWrapper(losses.ContrastiveLoss())},
                TypeError,
                "DistributedLossWrapper goes around",
            ),
            (
                {"loss": losses.MultipleLosses([losses.ContrastiveLoss(), torch.nn.MSELoss()])},
                TypeError,
                "MSELoss",
            ),
            (
                {"loss": losses.TripletMarginLoss(reducer=reducers.DoNothingReducer())},
                TypeError,
                "one number, got TripletMarginLoss with a DoNothingReducer",
            ),
            ({"loss": CrossBatchPrototypeLoss()}, TypeError, "distance, got CrossBatchPrototypeLoss, which"),
            ({"pooling": torch.nn.Linear(2, 2)}, TypeError, "pooling must be .* got Linear"),
            ({"weight": 0.3}, TypeError, "got weight. Did you mean cross_batch_weight?"),
            ({"k": 3}, TypeError, r"among loss, pooling, .*, collect_stats, got k$"),
            ({"embedding_reg": 1}, TypeError, "got embedding_reg. Did you mean embedding_reg_weight?"),
            (
                {"expressed_loss": losses.ProxyNCALoss(4, 6)},
                ValueError,
                "expressed_loss must have no parameters or buffers, got ProxyNCALoss",
            ),
            ({"expressed_loss": torch.nn.MSELoss()}, TypeError, "expressed_loss must be a loss of"),
            (
                {"expressed_loss": losses.MultipleLosses([losses.ContrastiveLoss()])},
                TypeError,
                "expressed_loss must be a single loss without a memory, got MultipleLosses",
            ),
        ],
    )
    def test_at_construction(self, options, error, message):
        with pytest.raises(error, match=message):
            CrossBatchPrototypeLoss(**options)

    @pytest.mark.parametrize("weight", [0, 0.1])
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"labels": None}, ValueError, "labels must be given, got None"),
            ({"labels": LABELS[:15]}, ValueError, r"labels must have shape \(16,\).*\(15,\)"),
            ({"labels": LABELS[:, None]}, ValueError, r"labels must have shape \(16,\)"),
            ({"labels": LABELS.tolist()}, TypeError, "labels must be a tensor of real numbers, got list"),
            ({"labels": LABELS.to(torch.complex64)}, TypeError, "labels must be a tensor of real numbers"),
            ({"labels": LABELS.float() / 0}, ValueError, "labels must be numbers, got 4 NaN among them"),
            ({"embeddings": torch.randn(16)}, ValueError, r"embeddings must have shape.*\(16,\)"),
            ({"embeddings": torch.randn(0, 6)}, ValueError, r"embeddings must have shape.*\(0, 6\)"),
            ({"embeddings": torch.ones(16, 6).long()}, TypeError, "floating point.*int64"),
            ({"histograms": torch.rand(15, 5)}, ValueError, "each of the 16 embeddings, got 15 rows"),
            ({"histograms": torch.rand(8, 5)}, ValueError, "each of the 16 embeddings, got 8 rows"),
            ({"histograms": torch.rand(16)}, ValueError, r"\(batch_size, num_prototypes\)"),
            ({"histograms": torch.rand(16, 0)}, ValueError, r"\(batch_size, num_prototypes\)"),
            (
                {"histograms": torch.ones(16, 5).long()},
                TypeError,
                "histograms must be a tensor of floating point",
            ),
            (
                {"histograms": torch.rand(16, 5, device="meta")},
                ValueError,
                "device of the embeddings, cpu, got meta",
            ),
        ],
    )
    def test_in_a_call(self, weight, change, error, message):
        embeddings, histograms = batch()
        arguments = {"embeddings": embeddings, "labels": LABELS, "histograms": histograms} | change
        with pytest.raises(error, match=message):
            CrossBatchPrototypeLoss(cross_batch_weight=weight)(**arguments)

    @pytest.mark.parametrize("weight", [0, 0.1])
    @pytest.mark.parametrize("labels", [LABELS, torch.zeros(16)], ids=["four classes", "one class"])
    @pytest.mark.parametrize("name", ["embeddings", "histograms", "ref_emb"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_values_that_are_not_finite(self, weight, labels, name, value):
        embeddings, histograms = batch(requires_grad=False)
        arguments = {"embeddings": embeddings, "histograms": histograms, "ref_emb": embeddings.clone()}
        arguments[name][3, 2] = value
        loss = CrossBatchPrototypeLoss(cross_batch_weight=weight)
        with pytest.raises(ValueError, match=rf"must be finite, got {name} .* with 1 values that are not"):
            loss(labels=labels, ref_labels=labels, **arguments)

    @pytest.mark.parametrize("autocast", [True, False])
    def test_bfloat16_is_no_excuse_for_values_that_are_not_finite(self, autocast):
        embeddings, histograms = batch(torch.float32 if autocast else torch.bfloat16, requires_grad=False)
        embeddings[3, 2] = float("inf")
        with torch.autocast("cpu", enabled=autocast), pytest.raises(ValueError, match="must be finite"):
            CrossBatchPrototypeLoss()(embeddings, LABELS, histograms=histograms)

    def test_finite_values_beyond_float32_beside_others_are_no_error(self):
        embeddings, histograms = batch()
        loss = CrossBatchPrototypeLoss()
        assert loss(embeddings * 1e100, LABELS, histograms=histograms.float()).isfinite()

    def test_no_references_at_all_are_no_error(self):
        embeddings, histograms = batch()
        loss = CrossBatchPrototypeLoss()
        none = {"ref_emb": embeddings[:0], "ref_labels": LABELS[:0]}
        got = loss(embeddings, LABELS, histograms=histograms, **none)
        torch.testing.assert_close(got, 0.3 * cross_batch_term(embeddings, histograms, LABELS < 2))

    @pytest.mark.parametrize("weight", [0, 0.1])
    @pytest.mark.parametrize("name", ["embeddings", "histograms"])
    @pytest.mark.parametrize("autocast", [True, False])
    def test_in_float16_the_loss_and_its_gradient_are_not_finite_instead(self, weight, name, autocast):
        embeddings, histograms = batch(torch.float32 if autocast else torch.float16, requires_grad=False)
        arguments = {"embeddings": embeddings, "histograms": histograms}
        arguments[name][3, 2] = float("inf")
        memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), 6, memory_size=48)
        embeddings.requires_grad_()
        with torch.autocast("cpu", dtype=torch.float16, enabled=autocast):
            value = CrossBatchPrototypeLoss(memory, cross_batch_weight=weight)(labels=LABELS, **arguments)
        assert not value.isfinite()
        value.backward()
        assert not embeddings.grad.isfinite().any()
        assert memory.embedding_memory.isfinite().all()
        assert memory.queue_idx == 0
