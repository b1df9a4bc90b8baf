import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file for writing that comes into being whole, or not at all.

    The bytes go to a hidden file in the same folder, which takes the place of ``path`` in one step once they
    have reached the disk. After an error the former ``path`` is as it was and the hidden file is gone. A
    process that is killed leaves the hidden file, and the next write of the same path overwrites it.

    Args:
        path: the file to write. Its folder has to exist.

    Returns:
        A context manager that gives the open binary file.
    """
    folder, name = os.path.split(os.path.abspath(path))
    partial_path = os.path.join(folder, f".{name}.partial")
    try:
        with open(partial_path, "wb") as file:
            try:
                yield file
            except Exception as error:
                # Interrupted by Ctrl-C, torch.save raises that its file is incomplete, which hides the
                # interrupt.
                if isinstance(error.__context__, KeyboardInterrupt):
                    raise error.__context__ from None
                raise
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial_path, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial_path)
        raise
    if os.name == "posix":
        # The new name is on disk only once its folder is.
        folder_descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(folder_descriptor)
        finally:
            os.close(folder_descriptor)
