import contextlib
from collections.abc import Iterator

import torch
from pytorch_metric_learning.utils import common_functions as c_f


@contextlib.contextmanager
def pml_compat() -> Iterator[None]:
    """Lends powerful-benchmarker the names of pytorch-metric-learning that it needs, and takes them back.

    It asks for ``common_functions.Identity``, which is ``torch.nn.Identity`` since PML 1.0, and puts a random
    state of its own in the place of ``common_functions.NUMPY_RANDOM``. Afterwards PML is as it was.

    Returns:
        A context manager around everything that powerful-benchmarker does.
    """
    numpy_random = c_f.NUMPY_RANDOM
    c_f.Identity = torch.nn.Identity
    try:
        yield
    finally:
        del c_f.Identity
        c_f.NUMPY_RANDOM = numpy_random
