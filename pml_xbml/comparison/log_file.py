import io
from pathlib import Path


class LogFile(io.TextIOBase):
    """A text file that keeps of a progress bar what it showed last.

    PML's trainer and tester draw a bar an epoch, over and over in one line, and take no option against it.

    Args:
        path: the file, which is appended to.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a")  # noqa: SIM115  closed with this file
        self._line = ""

    def write(self, text: str) -> int:
        """Takes note of text, and writes its lines once they are whole."""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._file.write(_last_shown(line) + "\n")
        self._line = self._line[self._line.rfind("\r", 0, -1) + 1 :] if "\r" in self._line else self._line
        return len(text)

    def flush(self) -> None:
        """Writes whole lines to the disk."""
        if not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        """Writes the last line too."""
        if not self._file.closed:
            if self._line:
                self._file.write(_last_shown(self._line) + "\n")
            self._file.close()
        super().close()


def _last_shown(line: str) -> str:
    return line.rstrip("\r").rpartition("\r")[2].rstrip()
