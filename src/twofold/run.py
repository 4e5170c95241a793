"""The run directory: the only reader and writer of runs.

    runs/NAME/
        config.json                      one record: recipe, config, spec, data, train settings, versions
        metrics.jsonl                    one record a line, each with "examples"
        samples/*.png
        best.json                        the best checkpoint so far, if the run keeps one
        checkpoints/000000005000/        named by the examples seen
            weights.safetensors …        tensors
            state.json                   the caller's JSON, and size and SHA-256 of every file beside it
        kept/NAME.safetensors            what can be computed again (a split's codes), beside NAME.json
        curves.png, report.html
        .lock                            locked by the process that writes the run, while it lives

Two promises. **At no instant is there a directory that cannot be read**: every file is written beside its place, forced
to disk and renamed into it, so that a crash leaves the old file or the new one. **Reading runs no code and trusts no
number**: nothing is pickled, links are refused, names cannot leave the folder, every read is bounded, and a checkpoint
is used only if size and checksum of all its files are right.

Importing this module imports no heavy package.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, final

from twofold.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

RUN_FORMAT = 1
CHECKPOINT_FORMAT = 1

JSON_LIMIT = 64 * 2**20
"""Bytes: the largest JSON file that is read or written."""
METRICS_LIMIT = 256 * 2**20
"""Bytes: the largest metrics.jsonl that is read."""
LINE_LIMIT = 2**20
"""Bytes: the longest line of metrics.jsonl that is read."""
HEADER_LIMIT = 16 * 2**20
"""Bytes: the longest safetensors header that is parsed (about 100,000 tensors)."""
FILES_LIMIT = 1000
"""The largest number of files in one checkpoint."""
EXAMPLES_LIMIT = 10**12

_CHECKPOINT = re.compile(r"[0-9]{12}")
_STEM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_LOCK = ".lock"
_OWN = ("config.json", "metrics.jsonl", "best.json", "checkpoints", "kept", _LOCK)


class BusyError(InputError):
    """Another process is writing this run."""


class SaveError(InputError):
    """A file could not be written: disk full, read-only, no permission. What was there before is untouched."""


# JSON ------------------------------------------------------------------------------------------------------------


def json_bytes(record: Any) -> bytes:
    """`record` as indented JSON with a final newline; the same record gives the same bytes.

    Tuples become lists. Raises `TypeError` for what JSON cannot say exactly (a key that is not text, a set, a tensor …)
    and `ValueError` for a number that is not finite and for more than `JSON_LIMIT` bytes.
    """
    data = (json.dumps(_plain(record, "record"), indent=2, allow_nan=False) + "\n").encode()
    if len(data) > JSON_LIMIT:
        raise ValueError(f"a JSON record of {len(data):,} bytes; the limit is {JSON_LIMIT:,}: keep arrays in tensors")
    return data


def write_json(path: str | os.PathLike[str], record: Any) -> None:
    """Writes `record` to `path` in one indivisible step, indented, in the order of its keys.

    Raises `SaveError` if the file cannot be written, and as `json_bytes` does.
    """
    write_file(Path(path), json_bytes(record))


def read_json(path: str | os.PathLike[str]) -> Any:
    """The record in the file `path`: strict JSON (no NaN), at most `JSON_LIMIT` bytes, not a link.

    Raises `InputError` for anything else.
    """
    path = Path(path)
    return _parse_json(_read(path, JSON_LIMIT), str(path))


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}; JSON has finite numbers only")
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; keys must be text")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    raise TypeError(f"{where} is a {type(value).__name__}; allowed: dict, list, tuple, str, int, float, bool, None")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _parse_json(data: bytes, what: str) -> Any:
    # RecursionError: thousands of nested brackets. ValueError covers bad UTF-8, bad JSON and absurdly long integers.
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is not readable JSON ({_one_line(error)})") from None


def _canonical_sha256(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _one_line(error: BaseException) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())[:200] or type(error).__name__


# Files -----------------------------------------------------------------------------------------------------------


@contextmanager
def _saving(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SaveError(f"cannot write {path}: {_one_line(error)}; what was there before is untouched") from error


def _sync_directory(path: Path) -> None:
    """Makes a rename inside `path` survive a power cut, on systems that can open a directory."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems know no fsync of a directory
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_file(path: Path, data: bytes) -> None:
    """Writes `data` to `path` in one indivisible step. Raises `SaveError` if it cannot, leaving what was there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _saving(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_synced(temporary, data)
            os.replace(temporary, path)
            _sync_directory(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def _read(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. A link, pipe or device is refused, not opened."""
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a regular file; links and devices in a run are not followed")
        if status.st_size > limit:
            raise InputError(f"{path} has {status.st_size:,} bytes; at most {limit:,} are read")
        with open(path, "rb") as file:
            return file.read(min(limit, status.st_size))  # `read` makes room for all that it is asked for
    except OSError as error:
        raise InputError(f"cannot read {path}: {_one_line(error)}") from error


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _remove(path: Path) -> None:
    """Removes a file, link or folder, as far as that is possible: what stays is swept the next time."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


# The lock --------------------------------------------------------------------------------------------------------
#
# A lock of the operating system on an open file: it ends with the process, however that ends, so nothing stale is ever
# left. The holder removes the file before it lets go; who opened it meanwhile notices, and opens the next one.


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of the run directory `path`. Raises `BusyError` if another holder lives, here or elsewhere."""
    file = path / _LOCK
    while True:
        with _saving(file):
            handle = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _take(handle, path)
            if not _is_at(handle, file):
                continue  # finally closes it
            with suppress(OSError):  # a full disk: the number is for the message above only
                os.truncate(handle, 0)
                os.write(handle, str(os.getpid()).encode())
            try:
                yield
            finally:
                with suppress(OSError):  # Windows removes no open file: there it stays
                    os.unlink(file)
            return
        finally:
            os.close(handle)


def _take(handle: int, path: Path) -> None:
    try:
        _lock(handle)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            message = f"{path} is on a disk that knows no locks ({_one_line(error)}); choose another --out"
            raise SaveError(message) from error
        message = f"another process{_holder(handle)} is writing {path}; wait for it, or choose another --out"
        raise BusyError(message) from None


def _is_at(handle: int, file: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(file))
    except FileNotFoundError:
        return False


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, 2**30, os.SEEK_SET)  # beyond the content, which others may then read
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(handle: int) -> str:
    """ " (process 4711)" as the holder wrote it."""
    with suppress(OSError):
        number = os.read(handle, 20)
        if number.isdigit():
            return f" (process {number.decode()})"
    return ""


# The run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """One saved moment of training, as given to `Run.save_checkpoint`; tensors are on the CPU."""

    examples: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


@final
class Run:
    """One run directory. Make it with `Run.create` or `Run.open`.

    One process writes at a time, inside `writing`; any number may read, also while it is written.

    >>> import tempfile, torch
    >>> run = Run.create(tempfile.mkdtemp() + "/first", {"recipe": "vae"})
    >>> run.save_checkpoint(64, {"weights": {"w": torch.ones(2)}}, {"seed": 0})
    >>> Run.open(run.path).load_checkpoint().tensors["weights"]["w"]
    tensor([1., 1.])
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self._path = path
        self._config = config

    @property
    def path(self) -> Path:
        """The directory, absolute."""
        return self._path

    @property
    def config(self) -> dict[str, Any]:
        """The record given to `create` (a copy)."""
        return copy.deepcopy(self._config)

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: Mapping[str, Any]) -> Run:
        """A new run in `path`, which must be missing or empty; `config` is written to config.json.

        Raises `InputError` if there is something at `path`, `SaveError` if it cannot be written; then nothing is left
        behind.
        """
        path = Path(os.path.abspath(path))
        if "run_format" in config:
            raise ValueError("a config cannot have the key 'run_format': the run writes it")
        record = json_bytes({"run_format": RUN_FORMAT, **config})
        _refuse_occupied(path)
        made = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
        try:
            with _saving(path):
                path.mkdir(parents=True, exist_ok=True)
            with _locked(path):
                _refuse_occupied(path)  # once more: two processes may have come here at the same time
                write_file(path / "config.json", record)
        except BaseException:
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()
            raise
        return cls.open(path)

    @contextmanager
    def writing(self) -> Iterator[Run]:
        """Holds the run for this process: as long as the context is open nobody else enters it.

        Raises `BusyError` if another process, or another part of this one, is inside, and `SaveError` if the directory
        cannot be written. The lock is the operating system's: it ends with the process, also by `kill -9`.

        >>> import tempfile
        >>> run = Run.create(tempfile.mkdtemp() + "/first", {})
        >>> with run.writing() as run:
        ...     _ = run.write_text("note.txt", "mine")
        """
        with _locked(self._path):
            _sweep_files(self._path)
            yield type(self).open(self._path)  # as it is now: who held it before may have changed it

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """The run in `path`. Raises `InputError` if there is none, or none that this version can read."""
        path = Path(os.path.abspath(path))
        if not os.path.exists(path):
            raise InputError(f"there is no run at {path}; give the directory that `twofold train` wrote (its --out)")
        if not os.path.isdir(path):
            raise InputError(f"{path} is a file, not a run directory; give the directory that `twofold train` wrote")
        if not os.path.lexists(path / "config.json"):
            raise InputError(f"{path} is not a run directory: it has no config.json")
        record = read_json(path / "config.json")
        if not isinstance(record, dict) or not _is_count(record.get("run_format")):
            raise InputError(f"{path} is not a run directory: its config.json has no run_format")
        version = record.pop("run_format")
        if version > RUN_FORMAT:
            raise _newer(str(path), "run", version, RUN_FORMAT)
        return cls(path, record)

    def replace_config(self, config: Mapping[str, Any]) -> None:
        """Writes `config` in place of the one given to `create`, in one indivisible step. Raises `SaveError`."""
        record = {"run_format": RUN_FORMAT, **config}
        write_json(self._path / "config.json", record)
        self._config = copy.deepcopy(dict(config))

    # Files

    def write_bytes(self, relative: str, data: bytes) -> Path:
        """Writes `data` to `relative` ("samples/000000005000.png") in one indivisible step; returns the full path.

        Raises `InputError` if `relative` leads out of the run or to a file that this class keeps itself, `SaveError` if
        it cannot be written.
        """
        if relative.split("/")[0] in _OWN:
            raise InputError(f"{relative!r} in a run is kept by Run itself; choose another name")
        path = self._inside(relative)
        write_file(path, data)
        return path

    def write_text(self, relative: str, text: str) -> Path:
        """`write_bytes` of `text` in UTF-8; what UTF-8 cannot say (bytes of odd file names) is written as escapes."""
        return self.write_bytes(relative, text.encode("utf-8", "backslashreplace"))

    def write_json(self, relative: str, record: Any) -> Path:
        """`write_bytes` of `record` as `json_bytes` writes it."""
        return self.write_bytes(relative, json_bytes(record))

    def read_bytes(self, relative: str) -> bytes:
        """The file `relative`, at most `JSON_LIMIT` bytes. Raises `InputError` if it is missing, a link, or too big."""
        return _read(self._inside(relative), JSON_LIMIT)

    def read_json(self, relative: str) -> Any:
        """The JSON record in the file `relative`. Raises `InputError` as `read_json` does."""
        return read_json(self._inside(relative))

    def files(self, folder: str, suffix: str = "") -> list[str]:
        """Names, relative to the run and sorted, of the regular files in `folder` that end in `suffix`."""
        path = self._inside(folder)
        if not path.is_dir():
            return []
        names = sorted(entry.name for entry in os.scandir(path) if entry.is_file(follow_symlinks=False))
        return [f"{folder}/{name}" for name in names if name.endswith(suffix) and not _is_temporary(name)]

    def _inside(self, relative: str) -> Path:
        """The path of `relative`, which must stay below the run and pass through no link."""
        parts = PurePosixPath(relative).parts
        if not parts or "\\" in relative or "\0" in relative or ".." in parts or PurePosixPath(relative).is_absolute():
            raise InputError(f"{relative!r} is not a path inside a run; give a relative one without '..'")
        path = self._path
        for part in parts:
            path = path / part
            if path.is_symlink():
                raise InputError(f"{path} is a link; links in a run are not followed")
        return path

    # Metrics

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Adds one line to metrics.jsonl and hands it to the system at once.

        `record` holds "examples" and numbers, texts, booleans or None. JSON has no NaN: a number that is not finite is
        written as null and named under "nonfinite" ({"kl": "nan"}), from which `metrics` restores it.

        Raises `TypeError` for another kind of value, `ValueError` without "examples", `SaveError` if it cannot be
        written; a line written in part is taken away by the next call.
        """
        line = _metrics_line(record)
        path = self._inside("metrics.jsonl")
        with _saving(path), open(path, "ab+") as file:
            _cut_half_line(file)
            file.write(line)

    def metrics(self) -> list[dict[str, Any]]:
        """All records, oldest first; a last line that was not finished is left out.

        Raises `InputError` for a line before the last that is no record, and for more than `METRICS_LIMIT` bytes.
        """
        return [record for _, record in self._metrics_lines()]

    def truncate_metrics(self, examples: int, records: int | None = None) -> None:
        """Drops the records after `examples`, and after the first `records`, in one indivisible step: on resuming from
        the checkpoint that was saved when there were so many."""
        path = self._inside("metrics.jsonl")
        if path.exists():
            kept = [line for line, record in self._metrics_lines() if record["examples"] <= examples]
            write_file(path, b"".join(kept[:records]))

    def _metrics_lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        path = self._inside("metrics.jsonl")
        if not path.exists():
            return
        lines = _read(path, METRICS_LIMIT).splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            record = _parse_metrics_line(line)
            if record is not None:
                yield line, record
            elif number < len(lines):
                raise InputError(f'{path} line {number} is not a record with "examples"; remove that line')

    # Checkpoints

    def save_checkpoint(
        self,
        examples: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        *,
        keep: int = 2,
    ) -> None:
        """Saves one moment of training under the number of examples seen.

        `tensors` maps file names without suffix ("weights") to named tensors, `state` is JSON. The checkpoint appears
        whole or not at all. Then older complete ones beyond `keep` go, but for the best (`mark_best`), and so do all
        with a larger number: they belong to a course of training that was left by resuming before them. Afterwards this
        one is the latest.

        Raises `SaveError` if it cannot be written: the checkpoints before it are untouched, the half-written one is
        removed. Raises `ValueError` or `TypeError` for names, numbers or values that cannot be stored.
        """
        if not _is_count(examples) or examples >= EXAMPLES_LIMIT or not _is_count(keep) or keep < 1:
            raise ValueError(f"examples={examples!r}, keep={keep!r}: give 0 ≤ examples < {EXAMPLES_LIMIT:,}, keep ≥ 1")
        _check_names(tensors)
        plain = _plain(state, "state")
        parent = self._inside("checkpoints")
        final = parent / f"{examples:012d}"
        temporary = parent / f".{final.name}.{os.getpid()}.tmp"
        with _saving(final):
            if not parent.is_dir():
                parent.mkdir()
                _sync_directory(self._path)
            _sweep(parent)
            try:
                temporary.mkdir()
                _write_checkpoint(temporary, examples, tensors, plain)
                _put_in_place(temporary, final)
            except BaseException:
                _remove(temporary)
                raise
        try:
            best = self.best()
            _prune(parent, examples, keep, best["examples"] if best else None)
        except OSError as error:
            raise SaveError(f"saved {final}, but cannot remove an older one: {_one_line(error)}") from error

    def checkpoints(self) -> list[int]:
        """Numbers of examples of the complete checkpoints, ascending. Sizes are checked here, checksums on loading."""
        return _complete(self._inside("checkpoints"))

    def mark_best(self, examples: int, metric: str, value: float) -> None:
        """Says that the checkpoint at `examples` is the best, by this value of this metric: later saves keep it.

        Raises `InputError` if it is not there, `SaveError` if that cannot be written.
        """
        if examples not in self.checkpoints():
            raise InputError(f"{self._path} has no checkpoint {examples} that could be the best")
        write_json(self._inside("best.json"), {"examples": examples, "metric": metric, "value": value})

    def best(self) -> dict[str, Any] | None:
        """{"examples", "metric", "value"} of the best checkpoint; None if none was marked, or it is gone."""
        path = self._inside("best.json")
        if not path.exists():
            return None
        record = read_json(path)
        if not isinstance(record, dict) or not _is_count(record.get("examples")):
            raise InputError(f"{path} does not say which checkpoint is the best; remove it")
        return record if record["examples"] in self.checkpoints() else None

    def load_checkpoint(self, examples: int | str | None = None) -> Checkpoint:
        """The checkpoint at `examples`, by default the latest; "best": the one that `mark_best` named.

        Raises `InputError` if there is none, and if it is damaged: then the message names the file and the newest good
        checkpoint.
        """
        parent = self._inside("checkpoints")
        numbers = _numbered(parent)
        if not numbers:
            raise InputError(f"{self._path} has no checkpoint yet; train until the first one is saved")
        chosen = numbers[-1] if examples is None else examples
        if chosen == "best":
            if (best := self.best()) is None:
                raise InputError(f"{self._path} keeps no best checkpoint; train with --keep-best or give a number")
            chosen = best["examples"]
        if not isinstance(chosen, int) or chosen not in numbers:
            known = ", ".join(map(str, numbers))
            raise InputError(f"{self._path} has no checkpoint {chosen}; there is: {known}")
        try:
            return _read_checkpoint(_folder(parent, chosen), chosen)
        except _DamagedError as damage:
            rest = _newest_good(parent, numbers, chosen)
            raise InputError(f"checkpoint {chosen:012d} is damaged: {damage}; {rest}") from None

    # What can be computed again

    def keep(self, name: str, tensors: Mapping[str, Tensor], key: str) -> None:
        """Keeps tensors that can be computed again, under a `key` that says from what they were computed.

        Raises `SaveError` if they cannot be written, `ValueError` for a name that cannot be a file's.
        """
        _check_names({name: tensors})
        folder = self._inside("kept")
        path = folder / f"{name}.safetensors"
        temporary = folder / f".{path.name}.{os.getpid()}.tmp"
        with _saving(path):
            folder.mkdir(exist_ok=True)
            try:
                _write_tensors(temporary, tensors)
                entry = {"key": key, "bytes": temporary.stat().st_size, "sha256": _file_sha256(temporary)}
                os.replace(temporary, path)
            except BaseException:
                _remove(temporary)
                raise
            # A crash between the two leaves a checksum that does not fit, and `kept` finds nothing.
            write_file(folder / f"{name}.json", json_bytes(entry))

    def kept(self, name: str, key: str) -> dict[str, Tensor] | None:
        """The tensors kept under this name and key; None if there are none, or none that are whole."""
        _check_names({name: {}})
        path = self._inside(f"kept/{name}.safetensors")
        try:
            entry = read_json(self._inside(f"kept/{name}.json"))
            if not isinstance(entry, dict) or entry.get("key") != key:
                return None
            _check_file(path, entry["bytes"])
            return _read_tensors(path, entry)
        except (InputError, KeyError, _DamagedError):
            return None


def _refuse_occupied(path: Path) -> None:
    if not os.path.lexists(path):
        return
    if not os.path.isdir(path):
        raise InputError(f"{path} is not a directory; choose another --out")
    if os.path.lexists(path / "config.json"):
        raise InputError(f"there is a run at {path} already; continue it with --resume or choose another --out")
    try:
        # A `create` that was killed leaves its temporary: that is still an empty directory.
        other = sorted(name for name in os.listdir(path) if not _is_temporary(name) and name != _LOCK)
    except OSError as error:
        raise InputError(f"cannot read {path}: {_one_line(error)}; choose another --out") from error
    if other:
        raise InputError(f"{path} is not empty and not a run (it holds {other[0]!r}); choose another --out")
    for name in os.listdir(path):
        if name != _LOCK:
            _remove(path / name)


def _newer(what: str, kind: str, given: int, known: int) -> InputError:
    reads = f"{kind} format {given}; this one reads up to {known}"
    return InputError(f"{what} was written by a newer Twofold ({reads}); upgrade twofold")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


# Metrics ---------------------------------------------------------------------------------------------------------


def _metrics_line(record: Mapping[str, Any]) -> bytes:
    if not _is_count(record.get("examples")):
        raise ValueError(f'a metrics record needs "examples", a whole number; it has {sorted(map(str, record))}')
    if "nonfinite" in record:
        raise ValueError('a metrics record cannot have a metric named "nonfinite"')
    plain: dict[str, Any] = {}
    nonfinite: dict[str, str] = {}
    for name, value in record.items():
        if isinstance(value, float) and not math.isfinite(value):
            plain[name], nonfinite[name] = None, str(value)
        elif value is None or isinstance(value, str | bool | int | float):
            plain[name] = value
        else:
            raise TypeError(f"the metric {name!r} is a {type(value).__name__}; give a number, text, boolean or None")
    if nonfinite:
        plain["nonfinite"] = nonfinite
    line = (json.dumps(_plain(plain, "record")) + "\n").encode()
    if len(line) > LINE_LIMIT:
        raise ValueError(f"a metrics record of {len(line):,} bytes; the limit is {LINE_LIMIT:,}")
    return line


def _parse_metrics_line(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n") or len(line) > LINE_LIMIT:
        return None
    try:
        record = _parse_json(line, "line")
    except InputError:
        return None
    if not isinstance(record, dict) or not _is_count(record.get("examples")):
        return None
    nonfinite = record.pop("nonfinite", {})
    for name, value in nonfinite.items() if isinstance(nonfinite, dict) else ():
        if name in record and value in ("nan", "inf", "-inf"):
            record[name] = float(value)
    return record


def _cut_half_line(file: BinaryIO) -> None:
    """Takes away what a crash left after the last complete line."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            file.truncate(start + newline + 1)
            return
        end = start
    file.truncate(0)


# Checkpoints -----------------------------------------------------------------------------------------------------
#
# A folder is complete as soon as it has its name, because it is written under a temporary one. Saving the same number
# again needs two renames; between them the old folder is called `.NUMBER.replaced`, and readers know that name.


class _DamagedError(Exception):
    """What is wrong with one checkpoint."""


def _numbered(parent: Path) -> list[int]:
    if not parent.is_dir():
        return []
    names = [re.sub(r"\.(.*)\.replaced", r"\1", name) for name in os.listdir(parent)]
    return sorted({int(name) for name in names if _CHECKPOINT.fullmatch(name)})


def _folder(parent: Path, examples: int) -> Path:
    folder = parent / f"{examples:012d}"
    replaced = parent / f".{folder.name}.replaced"
    return replaced if not os.path.lexists(folder) and os.path.lexists(replaced) else folder


def _complete(parent: Path) -> list[int]:
    return [number for number in _numbered(parent) if _is_complete(_folder(parent, number), number)]


def _is_complete(folder: Path, examples: int) -> bool:
    try:
        _read_manifest(folder, examples)
    except (_DamagedError, InputError):
        return False
    return True


def _newest_good(parent: Path, numbers: list[int], but: int) -> str:
    for number in reversed(numbers):
        if number != but:
            with suppress(_DamagedError, InputError):
                _read_checkpoint(_folder(parent, number), number)
                return f"the newest good one is {number:012d}: use --checkpoint {number}"
    return "there is no other good one: train again"


def _check_names(tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    if len(tensors) > FILES_LIMIT:
        raise ValueError(f"{len(tensors)} files in a checkpoint; the limit is {FILES_LIMIT}")
    for stem, named in tensors.items():
        if not _STEM.fullmatch(stem):
            raise ValueError(f"{stem!r} cannot be a file of a checkpoint; use letters, digits, '_', '-' and '.'")
        if "__metadata__" in named:
            raise ValueError(f"{stem!r} has a tensor named '__metadata__', which safetensors keeps for itself")
    if len({stem.lower() for stem in tensors}) < len(tensors):
        raise ValueError(f"{sorted(tensors)}: two files differ by capital letters only, which some disks cannot hold")


def _write_checkpoint(
    folder: Path, examples: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> None:
    files = {}
    for stem, named in tensors.items():
        path = folder / f"{stem}.safetensors"
        _write_tensors(path, named)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _file_sha256(path)}
    record = {
        "checkpoint_format": CHECKPOINT_FORMAT,
        "examples": examples,
        "files": files,
        "state": state,
    }
    record["sha256"] = _canonical_sha256(record)
    _write_synced(folder / "state.json", json_bytes(record))
    _sync_directory(folder)


def _write_tensors(path: Path, named: Mapping[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    seen: set[int] = set()
    ready = {}
    for name, tensor in named.items():
        stored = tensor.detach().cpu().contiguous()
        storage = stored.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory (tied weights); they are stored twice.
        ready[name] = stored.clone() if storage in seen else stored
        seen.add(storage)
    try:
        save_file(ready, path)
    except SafetensorError as error:  # its writer reports a full disk this way, not as an OSError
        raise OSError(errno.EIO, _one_line(error), str(path)) from error
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _put_in_place(temporary: Path, final: Path) -> None:
    replaced = final.with_name(f".{final.name}.replaced")
    if os.path.lexists(final):
        os.replace(final, replaced)
        try:
            os.replace(temporary, final)
        except OSError:
            os.replace(replaced, final)
            raise
        _remove(replaced)
    else:
        os.replace(temporary, final)
    _sync_directory(final.parent)


def _sweep_files(folder: Path) -> None:
    """Removes the temporaries that killed processes left in the run. Those of a living one may be about to get their
    names: `sample` writes into a run while another process trains it."""
    for directory, _, names in os.walk(folder):
        for name in names:
            if _is_temporary(name) and not _lives(name.split(".")[-2]):
                _remove(Path(directory, name))


def _lives(process: str) -> bool:
    """Whether there may be a process of that number."""
    if sys.platform == "win32" or not re.fullmatch("[0-9]{1,9}", process):
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return int(process) != os.getpid()


def _sweep(parent: Path) -> None:
    """Finishes what a killed save left: temporaries go; a checkpoint that was being replaced gets its name back."""
    for name in os.listdir(parent):
        path = parent / name
        if _is_temporary(name):
            _remove(path)
        elif name.endswith(".replaced") and _CHECKPOINT.fullmatch(name[1:-9]):
            final = parent / name[1:-9]
            if os.path.lexists(final):
                _remove(path)
            else:
                os.replace(path, final)


def _prune(parent: Path, newest: int, keep: int, best: int | None) -> None:
    older = [number for number in _complete(parent) if number < newest]
    # A best one beyond the newest belongs to a course of training that was left.
    kept = {newest, *older[::-1][: keep - 1], *({best} & set(older))}
    for number in _numbered(parent):
        if number not in kept:
            # Renamed first, so that a kill while its files go leaves no half checkpoint under a number.
            gone = parent / f".{number:012d}.{os.getpid()}.tmp"
            os.replace(_folder(parent, number), gone)
            _remove(gone)


def _read_checkpoint(folder: Path, examples: int) -> Checkpoint:
    record = _read_manifest(folder, examples)
    files = record["files"].items()
    tensors = {name.removesuffix(".safetensors"): _read_tensors(folder / name, entry) for name, entry in files}
    return Checkpoint(examples, tensors, record["state"])


def _read_manifest(folder: Path, examples: int) -> dict[str, Any]:
    """state.json, checked for itself and against the sizes of the files it names."""
    if folder.is_symlink() or not folder.is_dir():
        raise _DamagedError("it is not a folder; links in a run are not followed")
    if not os.path.lexists(folder / "state.json"):
        raise _DamagedError("state.json is missing")
    try:
        record = read_json(folder / "state.json")
    except InputError as error:
        raise _DamagedError(f"state.json cannot be used: {error}") from None
    version = record.get("checkpoint_format") if isinstance(record, dict) else None
    if isinstance(version, int) and version > CHECKPOINT_FORMAT:
        raise _newer(f"checkpoint {examples:012d}", "checkpoint", version, CHECKPOINT_FORMAT)
    _check_manifest(record, examples)
    for name, entry in record["files"].items():
        _check_file(folder / name, entry["bytes"])
    return record


def _check_manifest(record: Any, examples: int) -> None:
    if not isinstance(record, dict) or record.get("checkpoint_format") != CHECKPOINT_FORMAT:
        raise _DamagedError("state.json is not the record of a checkpoint")
    claimed = record.pop("sha256", None)
    try:
        actual = _canonical_sha256(record)
    except RecursionError:
        raise _DamagedError("state.json is nested too deeply") from None
    if claimed != actual:
        raise _DamagedError("state.json has the wrong checksum")
    if set(record) != {"checkpoint_format", "examples", "files", "state"} or not isinstance(record["state"], dict):
        raise _DamagedError("state.json is not the record of a checkpoint")
    if record["examples"] != examples:
        raise _DamagedError(f"state.json is of another checkpoint ({str(record['examples'])[:20]})")
    files = record["files"]
    if not isinstance(files, dict) or len(files) > FILES_LIMIT:
        raise _DamagedError("state.json does not list its files")
    for name, entry in files.items():
        if not name.endswith(".safetensors") or not _STEM.fullmatch(name.removesuffix(".safetensors")):
            raise _DamagedError(f"state.json names the file {name[:100]!r}, which is not allowed")
        if not isinstance(entry, dict) or not _is_count(entry.get("bytes")) or not isinstance(entry.get("sha256"), str):
            raise _DamagedError(f"state.json has no size and checksum of {name}")


def _check_file(path: Path, size: int) -> None:
    try:
        status = os.lstat(path)
    except OSError:
        raise _DamagedError(f"{path.name} is missing") from None
    if not stat.S_ISREG(status.st_mode):
        raise _DamagedError(f"{path.name} is not a regular file; links in a run are not followed")
    if status.st_size != size:
        raise _DamagedError(f"{path.name} has {status.st_size:,} bytes instead of {size:,}")


def _read_tensors(path: Path, entry: Mapping[str, Any]) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise InputError(f"cannot read {path}: {_one_line(error)}") from error
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise _DamagedError(f"{path.name} has the wrong checksum")
    header = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header > min(HEADER_LIMIT, len(data) - 8):
        raise _DamagedError(f"{path.name} has a header of {header:,} bytes, which is not possible")
    # A right checksum does not make a file honest. safetensors checks offsets against the buffer; the rest of these
    # are torch's answers to shapes and types that no tensor has.
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise _DamagedError(f"{path.name} is not a safetensors file ({_one_line(error)})") from None


# States as tensors and JSON --------------------------------------------------------------------------------------

_TAG = "~"


def flatten_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """A nested state (an optimiser's `state_dict()`, random states) as ({name: tensor}, JSON).

    `state` consists of dicts, lists, tuples, tensors, text, whole numbers, floats, booleans and None; keys of dicts may
    be anything of these but tensors, lists and dicts. `unflatten_state` gives back equal types and the same bits; a
    tensor that stands in two places comes back as two. Memory layout is kept for channels_last.

    Raises `TypeError` for any other type, naming where it stands.

    >>> import torch
    >>> flatten_state({"lr": 0.1, "state": {0: torch.zeros(1)}})
    ({'state/0': tensor([0.])}, {'lr': 0.1, 'state': {'~': 'dict', 'items': [[0, {'~': 'tensor', 'name': 'state/0'}]]}})
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _encode(state, (), tensors)


def unflatten_state(tensors: Mapping[str, Tensor], record: Any) -> Any:
    """The state from which `flatten_state` made `tensors` and `record`. Raises `InputError` if they do not fit."""
    try:
        return _decode(record, tensors)
    except RecursionError:
        raise InputError("this is not a saved state: it is nested too deeply") from None


def _encode(value: Any, path: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return _encode_tensor(value, path, tensors)
    if isinstance(value, dict):
        items = [(key, _encode(item, (*path, str(key)), tensors)) for key, item in value.items()]
        if _TAG not in value and all(isinstance(key, str) for key in value):
            return dict(items)
        return {_TAG: "dict", "items": [[_encode_key(key, path), item] for key, item in items]}
    if type(value) in (list, tuple):
        encoded = [_encode(item, (*path, str(index)), tensors) for index, item in enumerate(value)]
        return encoded if isinstance(value, list) else {_TAG: "tuple", "items": encoded}
    return _encode_scalar(value, path)


def _encode_scalar(value: Any, path: tuple[str, ...]) -> Any:
    # Subclasses (NumPy's float64 is a float, enums are ints) would come back as another type.
    if value is None or type(value) in (str, bool, int):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {_TAG: "float", "value": str(value)}
    raise TypeError(
        f"state {'/'.join(path) or 'itself'} is a {type(value).__name__}; allowed: dict, list, tuple, tensor, "
        "str, int, float, bool, None"
    )


def _encode_key(key: Any, path: tuple[str, ...]) -> Any:
    if type(key) is tuple:
        return {_TAG: "tuple", "items": [_encode_key(item, path) for item in key]}
    return _encode_scalar(key, (*path, "(key)"))


def _encode_tensor(tensor: Tensor, path: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    import torch

    name = "/".join(path) or "state"
    while name in tensors or name == "__metadata__":  # {"a/b": x, "a": {"b": y}}
        name += "'"
    tensors[name] = tensor.detach()
    record = {_TAG: "tensor", "name": name}
    order = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if order is not None and tensor.is_contiguous(memory_format=order) and not tensor.is_contiguous():
        record["order"] = "channels_last"
    return record


def _decode(record: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(record, list):
        return [_decode(item, tensors) for item in record]
    if not isinstance(record, dict):
        return record
    if _TAG not in record:
        return {key: _decode(item, tensors) for key, item in record.items()}
    kind, items = record[_TAG], record.get("items")
    if kind == "tensor":
        return _decode_tensor(record, tensors)
    if kind == "float" and record.get("value") in ("nan", "inf", "-inf"):
        return float(record["value"])
    if kind == "tuple" and isinstance(items, list):
        return tuple(_decode(item, tensors) for item in items)
    if kind == "dict" and isinstance(items, list) and all(isinstance(item, list) and len(item) == 2 for item in items):
        return {_decode_key(key): _decode(item, tensors) for key, item in items}
    raise InputError(f"this is not a saved state: it has an unknown part {str(record)[:80]!r}")


def _decode_key(record: Any) -> Any:
    key = _decode(record, {})
    try:
        hash(key)
    except TypeError:
        raise InputError(f"this is not a saved state: {str(record)[:80]!r} cannot be a key") from None
    return key


def _decode_tensor(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    import torch

    name = record.get("name")
    if not isinstance(name, str) or name not in tensors:
        raise InputError(f"this is not a saved state: the tensor {str(name)[:80]!r} is missing")
    tensor = tensors[name]
    order = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if record.get("order") == "channels_last" and order is not None:
        return tensor.contiguous(memory_format=order)
    return tensor
