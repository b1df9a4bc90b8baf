import copy
import logging
import pickle
import types

import pytest
import torch
from pytorch_metric_learning import distances, losses
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils import distributed as pml_distributed

from pml_xbml import functional
from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.samplers import DisjointClassPairSampler
from pml_xbml.trunks import PrototypePooling
from tests.losses.reference import LABELS, batch, cross_batch_term, expressed_by_sklearn, make_base


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

    def test_histograms_of_the_other_processes_follow_ones_own(self, monkeypatch):
        embeddings, histograms = batch()
        monkeypatch.setattr(pml_distributed, "is_distributed", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
        monkeypatch.setattr(pml_distributed, "all_gather", lambda _: histograms[4:].detach())
        loss = CrossBatchPrototypeLoss(cross_batch_weight=1)
        labels = torch.arange(16) // 2
        expected = cross_batch_term(embeddings, histograms, torch.arange(16) % 4 < 2, labels)
        torch.testing.assert_close(loss(embeddings, labels, histograms=histograms[:4]), expected)

    def test_an_odd_number_of_samples_is_not_cut_through_a_class(self):
        embeddings, histograms = batch()
        embeddings, histograms, labels = embeddings[:9], histograms[:9], torch.arange(9) // 5
        expected = cross_batch_term(embeddings, histograms, labels == 0, labels)
        loss = CrossBatchPrototypeLoss(cross_batch_weight=1)
        torch.testing.assert_close(loss(embeddings, labels, histograms=histograms), expected)

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
        expected = loss._cross_batch_loss(embeddings, LABELS, histograms, halves, None)
        with torch.autocast("cpu", dtype=dtype):
            got = loss._cross_batch_loss(embeddings, LABELS, histograms, halves, None)
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

    def test_not_for_the_blocks_of_several_processes(self, caplog, monkeypatch):
        monkeypatch.setattr(pml_distributed, "is_distributed", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        monkeypatch.setattr(pml_distributed, "all_gather", torch.clone)
        loss = CrossBatchPrototypeLoss()
        loss(torch.randn(4, 6), torch.tensor([0, 1, 0, 1]), histograms=torch.rand(2, 5))
        assert not caplog.records

    def test_not_at_weight_zero(self, caplog):
        assert not self.messages(caplog, torch.tensor([0, 1, 0, 1]), cross_batch_weight=0)
