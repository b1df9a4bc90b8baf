"""Which of the TensorBoard event files in a folder are a run's own."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# What ends the names of the event files of one run, in all processes that it was resumed in.
_RUN_SUFFIX = re.compile(r"\.run-[0-9a-f]{32}$")


def own_suffix(writer: SummaryWriter) -> str:
    """Gives the event files that a writer opens from here on a suffix that no other run has.

    Args:
        writer: the writer of the run. What it wrote before the first call stays where it is and counts as
            written before the run.

    Returns:
        The suffix, the same at every call.
    """
    if _RUN_SUFFIX.search(writer.filename_suffix) is None:
        _reopen(writer, f"{writer.filename_suffix}.run-{uuid.uuid4().hex}")
    return writer.filename_suffix


def adopt_suffix(writer: SummaryWriter, suffix: str) -> None:
    """Makes a writer go on with the event files of a run that is resumed.

    The file that the writer has opened in this process already is removed: it repeats what stands at the
    beginning of the run, or nothing.

    Args:
        writer: the writer of the resumed run.
        suffix: what :func:`own_suffix` returned.
    """
    opened = _opened_file(writer)
    _reopen(writer, suffix)
    if opened is not None and not opened.name.endswith(suffix):
        opened.unlink(missing_ok=True)


def own_event_files(writer: SummaryWriter) -> list[Path]:
    """The event files of the writer's run."""
    suffix = own_suffix(writer)
    files = Path(writer.get_logdir()).glob("events.out.tfevents.*")
    return [path for path in files if path.name.endswith(suffix)]


def _reopen(writer: SummaryWriter, suffix: str) -> None:
    # Closed, the writer opens another file for its next event.
    writer.close()
    writer.filename_suffix = suffix


def _opened_file(writer: SummaryWriter) -> Path | None:
    # The writer has no public way to tell. Where its private one is gone, a file without events stays.
    event_writer = getattr(writer.file_writer, "event_writer", None)
    name = getattr(event_writer, "_file_name", None)
    return None if name is None else Path(os.fspath(name))
