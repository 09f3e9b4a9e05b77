"""Files that are whole or not there, and a folder that one run has for itself. Needs no JAX."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from jaxfl.errors import InputError

try:
    import fcntl
except ImportError:  # not of this system
    fcntl = None

LOCK = ".lock"
PART = ".part"  # the end of the name of what is being written


def disk_error(path: Path, error: OSError) -> InputError:
    """What to say of a file that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(f"out: the disk of {path} is full; what was written before is kept.")
    return InputError(f"out: {path} cannot be written ({error.strerror or error}).")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system says of `path`, that it cannot be written, becomes an InputError."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that takes its name when it is whole and on the disk. Raises InputError where that fails."""
    part = path.with_name(path.name + PART)
    try:
        with part.open("wb") as file:
            file.write(data)
            sync(file)
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise disk_error(path, error) from error


def sync(file) -> None:
    """Wait until what was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_names(folder: Path) -> None:
    """Wait until the names of a folder's files are on the disk, where the system can say so."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make `folder` if need be and have it alone: no other run writes there meanwhile.

    The system forgets a lock with its process, however that ends. Where a file system has no locks nobody is kept out.

    Raises:
        InputError: another run has it, or it cannot be written.
    """
    file = _locked(folder)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
        os.close(file)


def _locked(folder: Path) -> int:
    """The open file of a folder's lock."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise disk_error(folder, error) from error
        except ValueError as error:  # of a name that no file can have
            raise InputError(f"out: {str(folder)!r} cannot be made ({error}).") from error
        try:
            _lock(file, folder)
            if os.path.samestat(os.fstat(file), os.stat(folder / LOCK)):
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # who had it has just removed it


def _lock(file: int, folder: Path) -> None:
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            raise InputError(
                f"out: another run is writing to {folder}; wait for it, or name another folder."
            ) from error
