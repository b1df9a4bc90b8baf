import copy

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from pytorch_metric_learning.utils import loss_and_miner_utils

from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.trunks import PrototypePooling
from tests.losses.reference import ALL_LOSSES, LABELS, WITHOUT_LABELS, batch, cross_batch_term, make_base


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
