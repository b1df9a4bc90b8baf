import multiprocessing
import os
import signal

import pytest

from pml_xbml.checkpoint.atomic_file import atomic_file

FORK = multiprocessing.get_context("fork")


def test_writes_the_file_and_leaves_nothing_else(tmp_path):
    for content in (b"first", b"second"):
        with atomic_file(tmp_path / "file") as file:
            file.write(content)
        assert (tmp_path / "file").read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_leaves_the_former_file(tmp_path):
    (tmp_path / "file").write_bytes(b"whole")
    with pytest.raises(TypeError), atomic_file(tmp_path / "file") as file:
        file.writelines([b"half", None])
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_an_interrupt_that_torch_save_hides_stays_one(tmp_path):
    def interrupted_save():
        try:
            raise KeyboardInterrupt
        finally:  # as torch.save's zip file does when it is closed halfway
            raise RuntimeError("unexpected pos 490944 vs 490832")

    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "file"):
        interrupted_save()
    with pytest.raises(RuntimeError, match="unexpected"), atomic_file(tmp_path / "file"):
        raise RuntimeError("unexpected")
    assert not (tmp_path / "file").exists()


@pytest.mark.slow
@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_killed_process_leaves_the_former_file(tmp_path, step):
    (tmp_path / "file").write_bytes(b"whole")

    def kill(*args):
        os.kill(os.getpid(), signal.SIGKILL)

    def write_and_die():
        if step != "write":
            setattr(os, step, kill)
        with atomic_file(tmp_path / "file") as file:
            file.write(b"half")
            if step == "write":
                file.flush()
                kill()

    process = FORK.Process(target=write_and_die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert [name for name in os.listdir(tmp_path) if not name.startswith(".")] == ["file"]

    with atomic_file(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]
