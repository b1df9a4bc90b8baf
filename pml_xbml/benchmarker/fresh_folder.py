import contextlib
from pathlib import Path


class FreshFolder:
    """A folder that a run fills, with what was there before, so that a run that fails early leaves nothing.

    Args:
        folder: the folder. It need not be there yet.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        above = (path for path in (self.folder, *self.folder.parents) if path.exists())
        self._there_before = {*above, *self.folder.rglob("*")}

    def remove_what_is_new(self) -> None:
        """Deletes the files and folders that have come since, and the folders above, if made for them."""
        # Sorted backwards, what is in a folder comes before the folder.
        inside = sorted(self.folder.rglob("*"), reverse=True)
        for path in (*inside, self.folder, *self.folder.parents):
            if path in self._there_before:
                continue
            if path.is_symlink() or path.is_file():
                path.unlink()
            else:
                # Another run may have its own things in a folder above.
                with contextlib.suppress(OSError):
                    path.rmdir()
