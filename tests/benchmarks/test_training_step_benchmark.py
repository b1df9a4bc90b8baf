import json
import statistics

import pytest
import torch
import torchvision
from pytorch_metric_learning.losses import ContrastiveLoss

from pml_xbml.losses import CrossBatchPrototypeLoss
from pml_xbml.trunks import PrototypePoolingTrunk

BATCH_SIZE, EMBEDDING_SIZE = 32, 128
ON_GPU, ON_CPU = ("resnet50", 224, 2048), ("resnet18", 112, 512)


def training_step(device, with_prototypes, memory_format=torch.contiguous_format):
    name, side, num_features = ON_GPU if device == "cuda" else ON_CPU
    trunk = torchvision.models.get_model(name, weights=None)
    loss = ContrastiveLoss()
    if with_prototypes:
        trunk = PrototypePoolingTrunk(trunk)
        loss = CrossBatchPrototypeLoss(loss, pooling=trunk)
    else:
        trunk.fc = torch.nn.Identity()
    model = torch.nn.Sequential(trunk, torch.nn.Linear(num_features, EMBEDDING_SIZE)).to(device)
    model = model.to(memory_format=memory_format)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    images = torch.randn(BATCH_SIZE, 3, side, side, device=device).to(memory_format=memory_format)
    labels = torch.arange(BATCH_SIZE, device=device) // 4

    def step():
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()

    return step


def peak_memory(step, device, trace):
    """Bytes that a step holds at its fullest, beyond weights and optimizer state."""
    step()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    profile.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"]
)
def test_time(ratio, device, memory_format):
    ratio(
        f"training step of a ResNet, {str(memory_format).removeprefix('torch.')}",
        training_step(device, True, memory_format),
        "base loss and global average pooling",
        training_step(device, False, memory_format),
        at_most=1.03,
        rounds=20,
    )


def test_peak_memory(benchmark, device, report, tmp_path):
    ratios = []

    def measure():
        ours, reference = (
            peak_memory(training_step(device, with_prototypes), device, tmp_path / "trace.json")
            for with_prototypes in (True, False)
        )
        ratios.append(ours / reference)

    # The convolutions' own buffers come and go: the same step measures up to 5% apart on a CPU.
    benchmark.pedantic(measure, rounds=9)
    benchmark.extra_info["ratio"] = statistics.median(ratios)
    report("training step of a ResNet, peak memory", "the same", statistics.median(ratios), at_most=1.03)
