import pytest
import torch
from pytorch_metric_learning import distances, losses, reducers
from pytorch_metric_learning.utils import distributed as pml_distributed

from pml_xbml.losses import CrossBatchPrototypeLoss
from tests.losses.reference import LABELS, batch, cross_batch_term


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
            ({"normalize_histograms": True}, TypeError, "got normalize_histograms$"),
            ({"center_histograms": True}, TypeError, "got center_histograms$"),
            ({"weight": 0.3}, TypeError, "got weight; did you mean cross_batch_weight?"),
            ({"k": 3}, TypeError, r"among loss, pooling, .*, collect_stats, got k$"),
            ({"embedding_reg": 1}, TypeError, "got embedding_reg; did you mean embedding_reg_weight?"),
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
            ({"histograms": torch.rand(17, 5)}, ValueError, "each of the 16 embeddings, got 17 rows"),
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
