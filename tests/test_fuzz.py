"""Whatever comes in, finite values with finite gradients come out, or an error of the documented kind.

`PML_XBML_FUZZ_CASES=100000 pytest tests/test_fuzz.py` tries more cases, and new ones with every run.
"""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses

from pml_xbml import functional
from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.samplers import DisjointClassPairSampler
from pml_xbml.trunks import PrototypePooling

pytestmark = pytest.mark.slow

REQUESTED_CASES = os.environ.get("PML_XBML_FUZZ_CASES")
fuzzed = settings(
    max_examples=int(REQUESTED_CASES or 2000),
    derandomize=REQUESTED_CASES is None,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

DOCUMENTED_ERRORS = (ValueError, TypeError)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def spoiled(values, kind):
    """The same shape with what breaks formulas: equal rows, zeros, constants, values that are no numbers."""
    values = values.clone()
    if kind == "duplicate rows":
        values[:] = values[:1]
    elif kind == "a zero row":
        values[-1:] = 0
    elif kind == "zeros":
        values.zero_()
    elif kind == "constant":
        values.fill_(0.3)
    elif kind == "tiny":
        values *= 1e-30
    elif kind == "large":
        values *= 1e4
    elif kind in ("nan", "inf", "-inf"):
        values.view(-1)[-1:] = float(kind)
    return values


def laid_out(values, layout):
    """The same values with other strides."""
    if layout == "transposed" and values.ndim > 1:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided":
        return torch.stack([values, values], dim=-1)[..., 0]
    if layout == "expanded":
        return values[:1].expand_as(values)
    return values


KINDS = (
    *("normal",) * 4,
    *("duplicate rows", "a zero row", "zeros", "constant", "tiny", "large", "nan", "inf", "-inf"),
)
LAYOUTS = (*("contiguous",) * 3, "transposed", "strided", "expanded")


@st.composite
def tensors(draw, *shape, dtypes=FLOATS, kinds=KINDS, is_simplex=False):
    """A leaf that requires a gradient, and the view of it that goes into the call."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    values = torch.randn(shape, generator=generator, dtype=torch.double)
    if is_simplex:
        values = values.mul(5).softmax(-1)
    kind, layout = draw(st.sampled_from(kinds)), draw(st.sampled_from(LAYOUTS))
    leaf = spoiled(values, kind).to(draw(st.sampled_from(dtypes))).requires_grad_()
    return leaf, laid_out(leaf, layout)


LABEL_PATTERNS = {
    "two classes": lambda size: torch.arange(size) * 2 // max(size, 1),
    "four classes": lambda size: torch.arange(size) * 4 // max(size, 1),
    "one class": lambda size: torch.zeros(size, dtype=torch.long),
    "all distinct": torch.arange,
    "unsorted": lambda size: torch.arange(size) * 7 % 3,
    "negative": lambda size: -(torch.arange(size) % 3) - 1,
    "huge": lambda size: 2**62 - torch.arange(size) % 3,
    "unequal": lambda size: (torch.arange(size) > 0).long(),
}
LABEL_DTYPES = (
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32),
    *(torch.uint64, torch.bool, torch.float32, torch.float64, torch.float16, torch.complex64),
)


@st.composite
def label_tensors(draw, size):
    labels = LABEL_PATTERNS[draw(st.sampled_from(sorted(LABEL_PATTERNS)))](size)
    labels = labels.to(draw(st.sampled_from((torch.int64, *LABEL_DTYPES))))
    if labels.is_floating_point() and draw(st.booleans()):
        labels[-1:] = draw(st.sampled_from((float("nan"), float("inf"))))
    return laid_out(labels, draw(st.sampled_from(LAYOUTS)))


def assert_finite_gradients(value, leaves):
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    for gradient, leaf in zip(gradients, leaves, strict=True):
        assert gradient is None or gradient.isfinite().all(), (leaf.dtype, gradient)


BASE_LOSSES = {
    "contrastive": losses.ContrastiveLoss,
    "triplet": losses.TripletMarginLoss,
    "multi_similarity": losses.MultiSimilarityLoss,
    "n_pair": losses.NTXentLoss,
    "memory": lambda: losses.CrossBatchMemory(losses.ContrastiveLoss(), 3, memory_size=20),
    "multiple": lambda: losses.MultipleLosses([losses.ContrastiveLoss(), losses.MultiSimilarityLoss()]),
}
sizes = st.sampled_from((0, 1, 2, 3, 4, 5, 8, 12))


@st.composite
def loss_calls(draw):
    size = draw(sizes)
    embedding_size = 3 if size else draw(st.sampled_from((0, 3)))
    leaf, embeddings = draw(tensors(size, embedding_size))
    histograms_leaf, histograms = None, None
    if draw(st.booleans()):
        num_rows = draw(st.sampled_from((size,) * 9 + (size + 1,)))
        num_prototypes = draw(st.sampled_from((1, 4, 20, 0)))
        histograms_leaf, histograms = draw(tensors(num_rows, num_prototypes, is_simplex=True))
    num_labels = draw(st.sampled_from((size,) * 9 + (size + 1,)))
    return {
        "loss": draw(st.sampled_from(sorted(BASE_LOSSES))),
        "weight": draw(st.sampled_from((0.0, 0.1, 1.0))),
        "ridge": draw(st.sampled_from((0.05, 1e-6, 10.0))),
        "embeddings": embeddings,
        "labels": draw(label_tensors(num_labels)),
        "histograms": histograms,
        "leaves": [leaf] if histograms_leaf is None else [leaf, histograms_leaf],
    }


@fuzzed
@given(loss_calls())
def test_loss(call):
    base_loss = BASE_LOSSES[call["loss"]]
    loss = CrossBatchPrototypeLoss(base_loss(), cross_batch_weight=call["weight"], ridge=call["ridge"])
    try:
        value = loss(call["embeddings"], call["labels"], histograms=call["histograms"])
    except DOCUMENTED_ERRORS:
        return
    except (NotImplementedError, RuntimeError) as error:
        # Not every loss of pytorch-metric-learning takes every dtype. That is theirs to say.
        with pytest.raises(type(error)):
            base_loss()(call["embeddings"], call["labels"])
        return
    assert value.ndim == 0
    if any(leaf.dtype == torch.float16 for leaf in call["leaves"]):
        return  # what is not finite is for the GradScaler
    assert value.isfinite()
    assert_finite_gradients(value, call["leaves"])


FEATURE_SHAPES = (
    *((3, 4, 3, 3), (3, 9, 4), (1, 4, 1, 1), (1, 1, 4), (2, 4, 1, 5), (5, 4, 2, 2)),
    *(
        (0, 4, 3, 3),
        (0, 9, 4),
        (2, 4, 0, 3),
        (2, 0, 4),
        (2, 5, 3, 3),
        (2, 9, 5),
        (4,),
        (3, 4),
        (1, 2, 4, 2, 2),
    ),
)
poolings = st.builds(
    PrototypePooling,
    num_features=st.just(4),
    num_prototypes=st.sampled_from((1, 3, 8)),
    temperature=st.sampled_from((1e-4, 0.1, 100.0)),
    similarity=st.sampled_from(("cosine", "dot")),
    output=st.sampled_from(("average", "prototypes")),
)
feature_tensors = st.sampled_from(FEATURE_SHAPES).flatmap(lambda shape: tensors(*shape))


def is_usable(features):
    return (
        features.ndim in (3, 4)
        and features.numel() > 0
        and features.shape[1 if features.ndim == 4 else 2] == 4
    )


@fuzzed
@given(poolings, st.sampled_from((torch.float32, torch.float64, torch.bfloat16)), feature_tensors)
def test_pooling(pooling, dtype, leaf_and_features):
    leaf, features = leaf_and_features
    pooling.to(dtype)
    try:
        output = pooling(features)
    except DOCUMENTED_ERRORS:
        assert not is_usable(features)
        return
    assert output.shape == (len(features), 4)
    assert output.dtype == features.dtype
    if leaf.dtype == torch.float16 or not features.isfinite().all():
        return  # the loss sees what is not finite
    histograms = pooling.histograms
    assert output.isfinite().all()
    assert (histograms >= 0).all()
    torch.testing.assert_close(histograms.sum(1), torch.ones_like(histograms[:, 0]), rtol=1e-3, atol=1e-3)
    weighted = (histograms * torch.arange(histograms.shape[1])).sum() + output.square().sum()
    assert_finite_gradients(weighted, [leaf, pooling.prototypes])


@fuzzed
@given(poolings, feature_tensors)
def test_assignments(pooling, leaf_and_features):
    _, features = leaf_and_features
    try:
        assigned = pooling.assignments(features)
    except DOCUMENTED_ERRORS:
        assert not is_usable(features)
        return
    positions = features.shape[2:] if features.ndim == 4 else features.shape[1:2]
    assert assigned.shape == (len(features), pooling.num_prototypes, *positions)
    if features.dtype != torch.float16 and features.isfinite().all():
        torch.testing.assert_close(assigned.sum(1), torch.ones_like(assigned[:, 0]), rtol=1e-3, atol=1e-3)


@fuzzed
@given(poolings, feature_tensors)
def test_init_prototypes(pooling, leaf_and_features):
    _, features = leaf_and_features
    before = pooling.prototypes.detach().clone()
    try:
        radius = pooling.init_prototypes(features)
    except DOCUMENTED_ERRORS:
        assert torch.equal(pooling.prototypes, before)
        return
    assert 0 <= radius <= 2 + 1e-6
    rows = features.transpose(1, -1).reshape(-1, 4) if features.ndim == 4 else features.reshape(-1, 4)
    is_a_feature = (pooling.prototypes[:, None] == rows.to(before)).all(-1).any(-1)
    assert is_a_feature.all()


@pytest.mark.parametrize(
    "value", [None, 3, "maps", [[[1.0] * 4]], torch.zeros(2, 4, 3, 3, dtype=torch.int64)]
)
@pytest.mark.parametrize("method", ["forward", "assignments", "init_prototypes"])
def test_features_that_are_no_floating_point_tensors_are_named(method, value):
    with pytest.raises(TypeError, match="features must be a tensor of floating point, got"):
        getattr(PrototypePooling(4), method)(value)


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_the_gradient_of_a_zero_vector_is_zero(layout):
    vectors = torch.zeros(3, 4, requires_grad=True)
    functional.l2_normalize(laid_out(vectors, layout)).sum().backward()
    assert torch.equal(vectors.grad, torch.zeros(3, 4))


FINITE_KINDS = tuple(kind for kind in KINDS if kind not in ("nan", "inf", "-inf"))
FINITE_FLOATS = (torch.float32, torch.float64, torch.bfloat16)


@st.composite
def halves(draw):
    """Histograms, embeddings, the first half of them or None for the middle, and a ridge."""
    size = draw(st.sampled_from((1, 2, 3, 4, 6, 12)))
    num_prototypes = draw(st.sampled_from((1, 4, 20)))
    histograms = tensors(size, num_prototypes, dtypes=FINITE_FLOATS, kinds=FINITE_KINDS, is_simplex=True)
    embeddings = tensors(size, 3, dtypes=FINITE_FLOATS, kinds=FINITE_KINDS)
    membership = st.lists(st.booleans(), min_size=size, max_size=size).map(torch.tensor)
    first_half = st.none() | membership if size % 2 == 0 else membership
    return draw(histograms), draw(embeddings), draw(first_half), draw(st.sampled_from((1e-6, 0.05, 10.0)))


@fuzzed
@given(halves())
def test_fit_and_expression(given_halves):
    (z_leaf, histograms), (y_leaf, embeddings), first_half, ridge = given_halves
    fitted = functional.ridge_fit(histograms, embeddings, ridge)
    assert fitted.shape == (histograms.shape[1], 3)
    expressed = functional.cross_batch_expression(
        histograms, embeddings, ridge, functional.Halves(first_half)
    )
    assert expressed.shape == embeddings.shape
    assert expressed.dtype == embeddings.dtype
    assert expressed.isfinite().all()
    assert_finite_gradients(fitted.sum() + expressed.double().square().sum(), [z_leaf, y_leaf])


@fuzzed
@given(tensors(3, 4, dtypes=FINITE_FLOATS, kinds=FINITE_KINDS))
def test_unit_vectors(leaf_and_vectors):
    leaf, vectors = leaf_and_vectors
    directions = functional.l2_normalize(vectors)
    norms = directions.double().norm(dim=-1)
    assert (((norms - 1).abs() < 0.01) | (norms == 0)).all()
    assert_finite_gradients(directions.square().sum() + directions.sum(), [leaf])


@fuzzed
@given(sizes.flatmap(label_tensors).filter(lambda labels: not labels.is_complex()), st.integers(1, 3))
def test_class_disjoint_halves(labels, world_size):
    try:
        first_half = functional.class_disjoint_halves(labels, world_size)
    except ValueError:
        assert len(labels) < world_size
        return
    values = labels.tolist()
    if values != [value for value in values if value == value]:
        return  # NaN equals no class, not even its own
    first = {value for value, is_first in zip(values, first_half.tolist(), strict=True) if is_first}
    second = {value for value, is_first in zip(values, first_half.tolist(), strict=True) if not is_first}
    assert first.isdisjoint(second)
    assert bool(second) == (len(set(values)) > 1)


@fuzzed
@given(tensors(9, 4, dtypes=FINITE_FLOATS, kinds=FINITE_KINDS), st.integers(0, 10))
def test_greedy_k_center(leaf_and_points, num_centers):
    points = leaf_and_points[1].detach()
    try:
        centers, radius = functional.greedy_k_center(points, num_centers)
    except DOCUMENTED_ERRORS:
        assert not 1 <= num_centers <= 9
        return
    assert len(centers) == num_centers
    distances = torch.cdist(points.double(), points[centers].double()).min(dim=1).values
    scale = 1 + points.double().abs().max()
    torch.testing.assert_close(radius.double() / scale, distances.max() / scale, rtol=0.02, atol=0.02)


SAMPLER_LABELS = {
    "tensor": lambda labels: labels,
    "array": lambda labels: labels.numpy(),
    "list": lambda labels: labels.tolist(),
    "strings": lambda labels: [str(label) for label in labels.tolist()],
    "column": lambda labels: labels[:, None],
    "mixed kinds": lambda labels: [*labels.tolist(), "other"],
    "ragged": lambda labels: [[1], [1, 2]],
    "none": lambda labels: None,
}


def mostly(*values, odd_ones=()):
    """Draws what can be used nine times as often as what cannot, or all errors would be of one argument."""
    return st.integers(0, 9).flatmap(lambda draw: st.sampled_from(odd_ones if draw == 0 else values))


@fuzzed
@given(
    mostly(8, 12, 40, odd_ones=(0, 1)).flatmap(label_tensors),
    mostly("tensor", "array", odd_ones=tuple(SAMPLER_LABELS)),
    mostly(1, 2, 3, odd_ones=(4, 0, -1, 1.5, "4", None, True)),
    mostly(2, 4, 6, 8, 12, odd_ones=(3, 0, -4, 4.0, "4", None, True)),
    mostly(20, 50, 100, odd_ones=(0, 1, 2.5)),
    mostly(0, 7, 2**63, odd_ones=(None, 2**64, -1, "seed")),
    mostly(
        (None, None), (1, 0), (2, 0), (2, 1), (3, 2), odd_ones=((2, None), (1, 1), (0, 0), (2, -1), (1.5, 0))
    ),
)
def test_sampler(labels, form, m, batch_size, length, seed, replica):
    given_labels = SAMPLER_LABELS[form](labels)
    try:
        sampler = DisjointClassPairSampler(given_labels, m, batch_size, length, seed, *replica)
    except DOCUMENTED_ERRORS:
        return
    indices = list(sampler)
    assert len(indices) == len(sampler) == length - length % batch_size
    classes = [given_labels[index] for index in indices]
    if form in ("tensor", "array"):
        classes = [label.item() for label in classes]
    half = batch_size // 2
    for start in range(0, len(classes), batch_size):
        first, second = set(classes[start : start + half]), set(classes[start + half : start + batch_size])
        assert first.isdisjoint(second)
        assert len(first) == len(second) == half // m
