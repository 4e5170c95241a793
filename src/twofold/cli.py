"""The command line: parse, call a verb, show the result. No mathematics, and no heavy import before it is needed.

argparse rather than a generator of command lines from types: it is imported in milliseconds, its messages can be one
line, and a recipe's options are known only once the recipe's name has been read.

Exit codes: 0 success, 1 training could not go on (a loss not finite, memory exhausted), 2 bad usage or bad input (one
line on stderr), 3 training was ended by an alarm of --stop-on, 130 after Ctrl-C; in both cases the state is saved.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn
from unicodedata import category

from twofold import __version__, recipes
from twofold.errors import InputError, unknown


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's) and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        _print_anything()
    try:
        code = _dispatch(words)
        _flush()
        return code
    except InputError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt as error:
        return _fail(str(error) or "interrupted", 130)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nothing is wrong, and Python must not complain at exit.
        _drop_output()
        return 0
    except OSError as error:
        # What verbs expect of files they say themselves; here it is a name too long, a device gone, stdout on a full
        # disk. None of these is a defect of the program.
        _drop_output()
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 2)
    except (MemoryError, RuntimeError) as error:
        return _stopped(error)


def _stopped(error: Exception) -> int:
    """The exit code of an error that ends training, with its line; any other is raised again."""
    from twofold.training import AlarmError, TrainingError

    if isinstance(error, (TrainingError, AlarmError)):
        return _fail(str(error), 1 if isinstance(error, TrainingError) else 3)
    # torch.OutOfMemoryError on an accelerator; on the CPU torch has no class of its own for it.
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        return _fail("out of memory; use a smaller network or batch, or compute batches in parts (--accumulate)", 1)
    raise error


def _fail(message: str, code: int) -> int:
    if sys.stderr is not None:  # closed by the caller (`2>&-`); print would take stdout instead
        with suppress(OSError):  # nobody reads it any more
            print(f"twofold: {_one_line(message)}", file=sys.stderr, flush=True)
    return code


def _one_line(text: str) -> str:
    """`text` without line breaks, and without what could drive a terminal: file names may contain anything."""
    joined = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in joined)


def _print_anything() -> None:
    """Lets stdout and stderr show what their encoding has no character for as an escape, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


def _flush() -> None:
    if sys.stdout is not None:  # closed by the caller (`>&-`)
        sys.stdout.flush()


def _drop_output() -> None:
    """If stdout cannot be written to any more, sends what is left nowhere, so that exit does not fail once more."""
    try:
        _flush()
    except OSError:
        with suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _dispatch(words: list[str]) -> int:
    parser = _parser(words)
    if not words:
        parser.print_help()
        return 0
    arguments, rest = parser.parse_known_args(words)
    if not hasattr(arguments, "run_verb"):
        if rest:
            raise unknown("option", rest[0], ("--help", "--version"))
        parser.print_help()
        return 0
    if rest:
        _refuse_rest(arguments.parser, rest)
    return arguments.run_verb(arguments)


def _refuse_rest(parser: argparse.ArgumentParser, rest: list[str]) -> NoReturn:
    flags = [flag for action in parser._actions for flag in action.option_strings]
    word = rest[0].partition("=")[0]
    if word.startswith("-"):
        raise unknown("option", word, [flag for flag in flags if flag.startswith("--")])
    raise InputError(f"unexpected {word!r}; see {parser.prog} --help")


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `InputError`s, which knows no abbreviations and takes an option once."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": _Help, **kwargs})
        self.register("action", None, _Once)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        _flush()  # while `main` can still tell a reader that went away from an error
        super().exit(status, message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what = f"value for {action.option_strings[-1]}" if action.option_strings else "command"
            raise unknown(what, str(value), map(str, action.choices))


class _Once(argparse.Action):
    """Stores a value, and refuses a second, different one instead of dropping the first in silence."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        given = vars(namespace).setdefault("given", {})
        if given.setdefault(self.dest, values) != values:
            raise argparse.ArgumentError(self, "given twice, with different values")
        setattr(namespace, self.dest, values)


class _Switch(_Once):
    """`--name` and `--no-name`. argparse's own differs between Python versions in what it writes into the help."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any):
        both = [*option_strings, *(f"--no-{flag[2:]}" for flag in option_strings)]
        super().__init__(both, dest, nargs=0, **kwargs)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        super().__call__(parser, namespace, not (option_string or "").startswith("--no-"), option_string)


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=110)

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += 2  # argparse forgets that commands are indented under their heading


def _parser(words: list[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="twofold",
        description="Explicit × implicit generative models: train, look at and use VAEs, GANs and their hybrids.",
        epilog="Start with: twofold recipes, then twofold train vae-gan --data digits",
    )
    parser.add_argument("--version", action="version", version=f"twofold {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)

    def verb(name: str, function: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        child = verbs.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        child.set_defaults(run_verb=function, parser=child)
        return child

    listing = verb("recipes", _recipes, "list the systems there are")
    listing.add_argument("--json", action="store_true", help="as JSON")

    shown = verb("show", _show, "print a recipe's routing table, networks and options")
    shown.add_argument("name", metavar="RECIPE", help="a name from `twofold recipes`")
    shown.add_argument("--json", action="store_true", help="as JSON")
    shown.add_argument(
        "--data", type=_path, metavar="SOURCE", help="size the networks for this data (default: 28×28 grey images)"
    )
    _data_options(shown)

    data = verb("data", _data, "list the built-in data, or say what is found in a source")
    data.add_argument("source", type=_path, metavar="SOURCE", nargs="?", help="a built-in name, a folder or a file")
    _data_options(data)

    training = verb("train", _train, "train a recipe on data, into a run directory")
    _train_options(training)
    chosen = {"train": training, "show": shown}.get(words[0]) if words else None
    if chosen is not None and (name := _recipe_named(chosen, words[1:])) is not None:
        _recipe_options(chosen, name)

    checked = verb("doctor", _doctor, "say what went wrong with a run, and what to try")
    checked.add_argument("run", type=_path, metavar="RUN", help="a run directory")
    checked.add_argument("--json", action="store_true", help="as JSON")
    checked.add_argument(
        "--data", type=_path, metavar="SOURCE", help="measure the newest checkpoint anew on this (default: the records)"
    )
    _data_options(checked)

    sample = verb("sample", _sample, "draw samples from a trained run")
    _model_options(sample)
    sample.add_argument("-n", type=_count, default=64, metavar="N", help="how many (default: 64)")
    sample.add_argument("--label", type=_whole, metavar="K", help="of this class (conditional models)")
    sample.add_argument(
        "--out", type=_path, metavar="FILE", help="a .png grid or an .npz with `samples` (default: in the run)"
    )

    rec = verb("reconstruct", _reconstruct, "encode and decode examples with a trained run")
    _model_options(rec)
    rec.add_argument("-n", type=_count, default=16, metavar="N", help="how many test examples (default: 16)")
    rec.add_argument(
        "--data", type=_path, metavar="SOURCE", help="examples to reconstruct (default: the run's own data)"
    )
    rec.add_argument(
        "--out", type=_path, metavar="FILE", help="a .png or an .npz with `x` and `x_rec` (default: in the run)"
    )
    _data_options(rec)

    rest = verb("complete", _complete, "keep the beginning of examples and draw the rest")
    _model_options(rest)
    rest.add_argument("-n", type=_count, default=8, metavar="N", help="how many test examples (default: 8)")
    rest.add_argument("--known", type=_number, default=0.5, metavar="F", help="part that is kept (default: 0.5)")
    rest.add_argument("--variants", type=_count, default=6, metavar="K", help="ways to go on from each (default: 6)")
    rest.add_argument("--data", type=_path, metavar="SOURCE", help="examples to complete (default: the run's own data)")
    rest.add_argument(
        "--out", type=_path, metavar="FILE", help="a .png or an .npz with `x` and `x_completed` (default: in the run)"
    )
    _data_options(rest)

    between = verb("interpolate", _interpolate, "decode the way from one code to another")
    _model_options(between)
    between.add_argument("-n", type=_count, default=8, metavar="N", help="pairs of codes (default: 8)")
    between.add_argument("--steps", type=_count, default=8, metavar="K", help="pictures on the way (default: 8)")
    between.add_argument(
        "--path", choices=("slerp", "lerp"), default="slerp", help="great circle (default) or straight line"
    )
    between.add_argument(
        "--data", type=_path, metavar="SOURCE", help="between codes of examples instead of codes of the prior"
    )
    between.add_argument("--label", type=_whole, metavar="K", help="of this class (conditional models)")
    between.add_argument("--out", type=_path, metavar="FILE", help="a .png or an .npz with `x` (default: in the run)")
    _data_options(between)

    _exploring_options(verb)
    _scoring_options(verb)
    measured = verb("evaluate", _evaluate, "measure a trained run, each figure with its protocol")
    _model_options(measured)
    measured.add_argument(
        "--data", type=_path, metavar="SOURCE", help="what to compare with (default: the run's own data)"
    )
    measured.add_argument(
        "--metrics", metavar="A,B|list", help="what to measure (default: all but what takes minutes); list: say what"
    )
    measured.add_argument(
        "--examples", type=_count, metavar="N", help="samples and real examples compared (default: up to 2000)"
    )
    measured.add_argument(
        "--features",
        choices=("classifier", "pixels", "inception"),
        help="what distances are measured on (default: a classifier trained on labelled images, else the values)",
    )
    _ignored_classes(measured)
    measured.add_argument("--json", type=_path, metavar="FILE", help="also write the results here")
    measured.add_argument("--download", action="store_true", help="let the Inception weights be downloaded (95 MB)")
    _data_options(measured)

    compared = verb("compare", _compare, "train and measure several recipes in one way, into one report")
    _compare_options(compared)

    translating = verb("translate", _translate, "translate pictures with a run trained on pairs")
    _model_options(translating)
    translating.add_argument(
        "input", type=_path, metavar="INPUT", help="a picture of any size, a folder of pictures, or a .npy of vectors"
    )
    translating.add_argument("--out", type=_path, metavar="DIR", required=True, help="the folder to write PNG files to")
    translating.add_argument(
        "--direction",
        choices=("forward", "back"),
        default="forward",
        help="from input to target (default), or back where the recipe learns that too",
    )
    translating.add_argument("--variants", type=_count, default=1, metavar="K", help="how many of each (default: 1)")
    translating.add_argument("--style", type=_path, metavar="FILE", help="take the style of this picture")
    translating.add_argument(
        "--fit", action="store_true", help="scale pictures to the size of training instead of tiling larger ones"
    )
    return parser


def _exploring_options(verb: Callable[..., argparse.ArgumentParser]) -> None:
    rows = verb("traverse", _explore("traverse"), "move one dimension of a code at a time and decode")
    _model_options(rows)
    rows.add_argument("-n", type=_count, default=10, metavar="N", help="dimensions, those that say most (default: 10)")
    rows.add_argument("--steps", type=_count, default=9, metavar="K", help="values of each dimension (default: 9)")
    rows.add_argument("--reach", type=_number, default=3.0, metavar="R", help="from -R to R (default: 3)")
    rows.add_argument("--example", type=_whole, metavar="I", help="from the code of test example I, not of the prior")
    rows.add_argument("--label", type=_whole, metavar="K", help="decode with this class (conditional models)")
    _result_options(rows, "a .png or an .npz with `x`")

    sums = verb("arithmetic", _explore("arithmetic"), "add and subtract concepts, each the mean code of exemplars")
    _model_options(sums)
    for flag, does in (("--plus", "add"), ("--minus", "subtract")):
        sums.add_argument(
            flag, type=_whole, nargs="+", action="append", default=[], metavar="I",
            help=f"exemplars of a concept to {does}, by number; may be repeated (without --plus: a sheet of numbers)",
        )  # fmt: skip
    sums.add_argument("--noise", type=_number, default=0.25, metavar="U", help="neighbours within ±U (default: 0.25)")
    sums.add_argument("--neighbours", type=_whole, default=8, metavar="N", help="how many (default: 8)")
    sums.add_argument("--label", type=_whole, metavar="K", help="decode with this class (conditional models)")
    _result_options(sums, "a .png or an .npz with `x` and `z`")

    means = verb("attributes", _explore("attributes"), "add the mean difference that a label makes to codes")
    _model_options(means)
    means.add_argument("-n", type=_count, default=8, metavar="N", help="test examples to change (default: 8)")
    means.add_argument("--strength", type=_number, default=1.0, metavar="A", help="times the vector (default: 1)")
    _result_options(means, "a .png or an .npz with `vectors` and `x_changed`")

    inverse = verb("invert", _explore("invert"), "find codes of examples by optimisation, without an encoder")
    _model_options(inverse)
    inverse.add_argument("-n", type=_count, default=8, metavar="N", help="test examples (default: 8)")
    inverse.add_argument("--steps", type=_count, default=300, metavar="K", help="of Adam (default: 300)")
    inverse.add_argument("--restarts", type=_count, default=4, metavar="R", help="starts from the prior (default: 4)")
    inverse.add_argument("--learning-rate", type=_number, default=0.1, metavar="X", help="at the start (default: 0.1)")
    inverse.add_argument(
        "--feature-weight", type=_number, default=0.0, metavar="W", help="of the discriminator's features (default: 0)"
    )
    _result_options(inverse, "a .png or an .npz with `x`, `x_rec` and `z`")


def _scoring_options(verb: Callable[..., argparse.ArgumentParser]) -> None:
    scored = verb("score", _score, "score examples: likelihood, reconstruction, discriminator, distance; anomalies")
    _model_options(scored)
    scored.add_argument("-n", type=_count, default=10_000, metavar="N", help="at most so many (default: 10000)")
    scored.add_argument("--scores", type=_names, metavar="A,B", help="which (default: all that are cheap)")
    scored.add_argument("--normal", type=_names, metavar="K,K", help="classes that are no anomalies: gives AUROC, AUPR")
    scored.add_argument("--false-alarm", type=_number, metavar="P", help="set thresholds for this rate of false alarms")
    scored.add_argument("--by", metavar="A", help="sort the picture by this score (default: the first)")
    scored.add_argument("--draws", type=_count, default=50, metavar="K", help="of the iw_bound (default: 50)")
    scored.add_argument("--neighbours", type=_count, default=5, metavar="K", help="of the knn scores (default: 5)")
    scored.add_argument("--steps", type=_count, default=300, metavar="K", help="of inversion (default: 300)")
    _split_option(scored)
    _result_options(scored, "a folder for scores.csv, scores.json and most-anomalous.png", metavar="DIR")

    named = verb("classify", _classify, "give the probability of each class or cluster for examples")
    _model_options(named)
    named.add_argument("-n", type=_count, default=10_000, metavar="N", help="at most so many (default: 10000)")
    _split_option(named)
    _result_options(named, "a .csv or a .json")


def _split_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", choices=("test", "train", "all"), default="test", help="which part (default: test)")


def _result_options(parser: argparse.ArgumentParser, what: str, *, metavar: str = "FILE") -> None:
    parser.add_argument("--data", type=_path, metavar="SOURCE", help="examples (default: the run's own data)")
    parser.add_argument("--out", type=_path, metavar=metavar, help=f"{what} (default: in the run)")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    _data_options(parser)


def _recipe_named(parser: argparse.ArgumentParser, words: list[str]) -> str | None:
    """The recipe among `words`, read before the recipe's own options can be known; None if none is named.

    Raises `InputError` for a name that is no recipe, before anything is said about options it may have had.
    """
    values = {
        flag: 1 if action.nargs is None else int(action.nargs)
        for action in parser._actions
        if action.nargs != "?"  # which the next word may belong to or not, as with the recipe's
        for flag in action.option_strings
    }
    names: list[str] = []
    perhaps_values: list[str] = []
    skip, after_unknown = 0, False
    for word in words:
        if skip:
            skip -= 1
        elif word.startswith("-"):
            # An option that is not known yet is the recipe's, and the next word may be its value.
            skip, after_unknown = values.get(word, 0), word not in values and "=" not in word
        else:
            (perhaps_values if after_unknown else names).append(word)
            after_unknown = False
    candidates = [*names, *perhaps_values]
    known = {entry.name for entry in recipes.ENTRIES}
    return recipes.find(next((c for c in candidates if c in known), candidates[0])).name if candidates else None


# Options.


def _whole(text: str) -> int:
    """A whole number; 1e5 is one too."""
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        value = float(text)
        if value.is_integer() and abs(value) < 2**53:  # beyond, the digits that were meant are lost
            return int(value)
    raise argparse.ArgumentTypeError(f"{_short(text)} is not a whole number")


def _count(text: str) -> int:
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{_short(text)} is below 1")
    return value


def _checkpoint(text: str) -> int | str:
    return text if text == "best" else _whole(text)


def _seed(text: str) -> int:
    value = _whole(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a whole number from 0 to 2^63 - 1")
    return value


def _path(text: str) -> str:
    if not text:  # an unset variable of a script; it would mean the current folder
        raise argparse.ArgumentTypeError("is empty")
    # Reports and hints contain it: no line breaks or terminal codes (Cc), no bytes that are not UTF-8 (Cs).
    if any(category(c) in ("Cc", "Cs") for c in text):
        raise argparse.ArgumentTypeError(f"{_short(text)} has bytes that cannot be shown; rename it")
    return text


def _number(text: str) -> float:
    with suppress(ValueError):
        value = float(text)
        if math.isfinite(value):
            return value
    raise argparse.ArgumentTypeError(f"{_short(text)} is not a finite number")


def _names(text: str) -> tuple[str, ...]:
    """Words between commas."""
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a list such as 0,1,2")
    return words


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _size(text: str) -> int | tuple[int, int]:
    height, cross, width = text.lower().partition("x")
    try:
        return (int(height), int(width)) if cross else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a size; give one number or HEIGHTxWIDTH") from None


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text.lower() == "none" else kind(text)


def _data_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("reading data")
    group.add_argument("--size", type=_size, metavar="N|HxW", help="resize images to cover this, keeping their centre")
    group.add_argument("--channels", type=_whole, choices=(1, 3, 4), help="grey, RGB, or RGB with opacity")
    group.add_argument(
        "--range", type=_number, nargs=2, metavar=("LOW", "HIGH"), help="values of black and white (floats: 0 1)"
    )
    group.add_argument("--labels", metavar="NAME", help="a file of labels, an array's key or a column's name")
    group.add_argument("--strict", action="store_true", help="refuse broken files instead of leaving them out")
    group.add_argument("--holdout", type=_number, default=0.1, metavar="F", help="part kept for testing (default: 0.1)")
    group.add_argument("--classes", type=_names, metavar="K,K", help="keep the examples of these classes only")
    group.add_argument(
        "--cache", type=_path, metavar="DIR", help="keep the pixels of a folder too large for memory here, decoded once"
    )
    group.add_argument("--column", metavar="NAME", help="of a hub set or parquet file: the one of the examples")
    group.add_argument(
        "--pairs", nargs=2, metavar=("INPUT", "TARGET"), help="pairs: two subfolders, or two arrays of an .npz"
    )
    group.add_argument("--side-by-side", action="store_true", help="pairs: each image is input and target side by side")
    group.add_argument("--unpaired", action="store_true", help="the two sides are sets without correspondence")
    group.add_argument("--swap", action="store_true", help="exchange input and target")


def _read_options(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {
        "size": arguments.size,
        "channels": arguments.channels,
        "value_range": tuple(arguments.range) if arguments.range else None,
        "labels": arguments.labels,
        "strict": arguments.strict or None,
        "holdout": arguments.holdout if arguments.holdout != 0.1 else None,
        "classes": arguments.classes,
        "cache": arguments.cache,
        "column": arguments.column,
        "pairs": tuple(arguments.pairs) if arguments.pairs else None,
        "side_by_side": arguments.side_by_side or None,
        "unpaired": arguments.unpaired or None,
        "swap": arguments.swap or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _train_options(parser: argparse.ArgumentParser) -> None:
    parser.usage = "twofold train RECIPE --data SOURCE [--out DIR] [--examples N] [options]"
    parser.epilog = "Each recipe has options of its own: twofold train RECIPE --help"
    parser.add_argument("name", metavar="RECIPE", help="a name from `twofold recipes`")
    parser.add_argument(
        "--data", type=_path, metavar="SOURCE", required=True, help="a built-in name, a folder or a file"
    )
    parser.add_argument("--out", type=_path, metavar="DIR", help="the run directory (default: a fresh one under runs/)")
    parser.add_argument(
        "--examples", type=_count, default=100_000, metavar="N", help="length in examples seen (default: 100000)"
    )
    parser.add_argument("--batch-size", type=_count, default=64, metavar="B", help="examples in a batch (default: 64)")
    parser.add_argument("--seed", type=_seed, default=0, metavar="S", help="of weights, data order, noise (default: 0)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    parser.add_argument(
        "--precision",
        choices=("float32", "bf16", "fp16"),
        default="float32",
        help="bf16, fp16: multiply in 16 bits, keep weights in float32 (default: float32)",
    )
    parser.add_argument(
        "--fused",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="one kernel for each update by Adam: faster, equal up to rounding",
    )
    parser.add_argument(
        "--compile",
        nargs="?",
        const="inductor",
        choices=("inductor", "aot_eager"),
        metavar="BACKEND",
        help="torch.compile the networks with inductor (default) or aot_eager: equal up to rounding",
    )
    parser.add_argument(
        "--channels-last", action="store_true", help="lay images out by pixel in memory: equal up to rounding"
    )
    parser.add_argument("--flip", action="store_true", help="mirror images left-right at random")
    parser.add_argument("--crop", type=_whole, default=0, metavar="P", help="move images by up to P pixels at random")
    parser.add_argument("--accumulate", type=_count, default=1, metavar="K", help="compute a batch in K parts")
    parser.add_argument(
        "--on-nonfinite",
        choices=("stop", "skip"),
        default="stop",
        help="when a loss is not finite: stop, or skip that move (default: stop)",
    )
    parser.add_argument(
        "--stop-on", metavar="ALARM,…", help="end the run, exit code 3, when one of these starts (docs/health.md)"
    )
    parser.add_argument(
        "--keep-best",
        metavar="max:NAME",
        help="also keep the checkpoint where this quantity of metrics.jsonl is best (or min:NAME)",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --out exactly where it stopped")
    parser.add_argument("--dry-run", action="store_true", help="print config, size, memory and time; write nothing")
    parser.add_argument(
        "--shard", action="store_true", help="several processes: divide a network that learns alone in its stage (FSDP)"
    )
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events into the run")
    _data_options(parser)


def _recipe_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Add a flag for each field of the recipe's Config. Flags left out keep their default."""
    from twofold.overview import value_text

    entry = recipes.find(name)
    default = recipes.default_config(entry)
    parser.epilog = None
    group = parser.add_argument_group(f"options of {name}", f"{entry.paper} ({entry.year})")
    for field in fields(default):
        shown = value_text(getattr(default, field.name))
        help = f"{field.metadata.get('help', '')} (default: {shown})".replace("%", "%%")
        common: dict[str, Any] = {"dest": f"option_{field.name}", "default": argparse.SUPPRESS, "help": help}
        flag = f"--{field.name.replace('_', '-')}"
        if "bool" in _kinds(field):
            group.add_argument(flag, action=_Switch, **common)
        elif choices := field.metadata.get("choices"):
            group.add_argument(flag, choices=tuple(choices), **common)
        else:
            metavar = {"int": "N", "float": "X"}.get(_kinds(field)[0], "TEXT")
            group.add_argument(flag, type=_value_parser(field), metavar=metavar, **common)


def _kinds(field: Any) -> list[str]:
    """The types that a Config's field allows."""
    return str(field.type).replace(" ", "").split("|")


def _value_parser(field: Any) -> Callable[[str], Any]:
    """Text to a value of a Config's field; its choices are the recipe's to check."""
    kinds = _kinds(field)
    kind: Callable[[str], Any] = {"int": _whole, "float": _number, "bool": _yes_or_no}.get(kinds[0], str)
    return _or_none(kind) if "None" in kinds else kind


def _ignored_classes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ignore", type=_whole, nargs="+", default=[], metavar="K", help="classes of label maps that count nowhere"
    )


def _compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="RECIPE", nargs="+", help="names from `twofold recipes`")
    parser.add_argument(
        "--data", type=_path, metavar="SOURCE", required=True, help="a built-in name, a folder or a file"
    )
    parser.add_argument(
        "--out", type=_path, metavar="DIR", required=True, help="one run a recipe and seed; what is there is kept"
    )
    parser.add_argument("--seeds", type=_count, default=3, metavar="K", help="seeds 0 … K - 1 (default: 3)")
    parser.add_argument(
        "--examples", type=_count, default=100_000, metavar="N", help="length of each training (default: 100000)"
    )
    parser.add_argument("--batch-size", type=_count, default=64, metavar="B", help="examples in a batch (default: 64)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    parser.add_argument("--metrics", metavar="A,B", help="what to measure (default: all but what takes minutes)")
    parser.add_argument(
        "--evaluate-examples", type=_count, metavar="N", help="compared with as many (default: up to 2000)"
    )
    parser.add_argument("--features", choices=("classifier", "pixels", "inception"), help="as in twofold evaluate")
    _ignored_classes(parser)
    parser.add_argument(
        "--own-networks", action="store_true", help="each recipe's default networks instead of equal ones"
    )
    parser.add_argument(
        "--set",
        type=_setting,
        nargs="+",
        default=[],
        metavar="[RECIPE.]OPTION=VALUE",
        help="an option of all recipes that have it (width=32), or of one (vae-gan.gamma=0.1)",
    )
    _data_options(parser)


def _setting(text: str) -> tuple[str | None, str, str]:
    """(recipe, option, value) of `vae-gan.gamma=0.1`; without a recipe: None."""
    name, equals, value = text.partition("=")
    recipe, dot, option = name.rpartition(".")
    if not equals or not option or not value:
        raise argparse.ArgumentTypeError(f"{_short(text)} is not OPTION=VALUE or RECIPE.OPTION=VALUE")
    return (recipe if dot else None), option.replace("-", "_"), value


def _settings(
    names: Sequence[str], given: Sequence[tuple[str | None, str, str]]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Options for all recipes, and {recipe: options}, read as the recipes' Configs declare them."""
    shared: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {}
    for recipe, option, text in given:
        known = [f for name in ([recipe] if recipe else names) for f in fields(_default(name)) if f.name == option]
        if not known:
            raise InputError(f"{recipe or ' and '.join(names)} has no option {option!r}; see twofold show RECIPE")
        try:
            (shared if recipe is None else own.setdefault(recipe, {}))[option] = _value_parser(known[0])(text)
        except argparse.ArgumentTypeError as error:
            raise InputError(f"--set {option}: {error}") from None
    return shared, own


def _default(name: str) -> Any:
    return recipes.default_config(recipes.find(name))


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"{_short(text)} is not yes or no")
    return text == "yes"


def _chosen(arguments: argparse.Namespace) -> dict[str, Any]:
    return {k.removeprefix("option_"): v for k, v in vars(arguments).items() if k.startswith("option_")}


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=_path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--seed", type=_seed, default=0, metavar="S", help="the same seed, the same result (default: 0)"
    )
    parser.add_argument(
        "--checkpoint", type=_checkpoint, metavar="N|best", help="the one at N examples, or the best (default: newest)"
    )
    parser.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda, cuda:1, mps (default: cpu)")


# Verbs.


def _recipes(arguments: argparse.Namespace) -> int:
    if arguments.json:
        print(json.dumps(recipes.listing(), indent=2, ensure_ascii=False))
        return 0
    for family in recipes.FAMILIES:
        print(family)
        for entry in recipes.ENTRIES:
            if entry.family == family:
                print(f"  {entry.name:<21}{entry.summary}")
                print(f"  {'':<21}{entry.paper} ({entry.year}); {', '.join(entry.data_kinds)}")
    print("\ntwofold show RECIPE prints its routing table; twofold train RECIPE --help its options")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    recipes.find(arguments.name)
    from twofold.overview import example, show, show_text

    spec = example(arguments.name)
    if arguments.data:
        from twofold.data import load

        spec = load(arguments.data, **_read_options(arguments)).spec
    if arguments.json:
        record = show(arguments.name, spec=spec, options=_chosen(arguments))
        print(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        print(show_text(arguments.name, spec=spec, options=_chosen(arguments)))
    return 0


def _data(arguments: argparse.Namespace) -> int:
    if arguments.source is None:
        from twofold.data.catalogue import sources

        for source in sources():
            shape = "×".join(map(str, source.shape))
            if source.input_shape is not None:
                shape = "×".join(map(str, source.input_shape)) + f" → {shape}"
            print(f"{source.name:<21}{source.kind:<8}{shape:<17}{source.examples:>9,}  {source.description}")
        print(
            "\nYour own: a folder of images (class subfolders become labels), .npz, .npy, idx or CSV files; "
            "twofold data PATH says what is found"
        )
        return 0
    from twofold.data import describe, load

    for line in describe(load(arguments.source, **_read_options(arguments))):
        print(_one_line(line))
    return 0


def _train(arguments: argparse.Namespace) -> int:
    recipes.find(arguments.name)
    from twofold.display import Bar
    from twofold.training import Settings, estimate, prepare, train

    # Every field of Settings has a flag of its name.
    settings = {f.name: getattr(arguments, f.name) for f in fields(Settings)}
    common = {
        "data": arguments.data,
        "device": arguments.device,
        "data_options": _read_options(arguments),
        **_chosen(arguments),
    }
    if arguments.dry_run:
        plan = prepare(arguments.name, settings=Settings(**settings), **common)
        _print_estimate(plan.record, estimate(plan))
        return 0
    model = train(
        arguments.name,
        out=arguments.out,
        resume=arguments.resume,
        shard=arguments.shard,
        tensorboard=arguments.tensorboard,
        watch=Bar(),
        **settings,
        **common,
    )
    assert model.run is not None
    if os.environ.get("RANK", "0") != "0":  # one of several processes; the main one says it
        return 0
    path = model.run.path
    print(f"trained {arguments.name} on {model.examples:,} examples: {path}")
    run = shlex.quote(str(path))
    use = f"sample {run} -n 64" if "sample" in model.abilities else f"translate {run} INPUT --out DIR"
    print(f"look at {path / 'report.html'}, or: twofold {use}")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from twofold.health import doctor

    found = doctor(arguments.run, data=arguments.data, data_options=_read_options(arguments))
    if arguments.json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
    else:
        for line in found.text.splitlines():
            print(_one_line(line))
    return 0


def _print_estimate(record: dict[str, Any], cost: dict[str, Any]) -> None:
    print(json.dumps({k: record[k] for k in ("recipe", "config", "spec", "data", "train")}, indent=2))
    minutes, seconds = divmod(round(cost["seconds"]), 60)
    print(f"parameters          {cost['parameters']:,}")
    print(f"weights+grad+optim  {cost['state_bytes'] / 2**20:,.1f} MiB")
    print(f"peak memory so far  {cost['peak_memory_bytes'] / 2**20:,.0f} MiB on {cost['device']}")
    print(f"speed               {cost['examples_per_second']:,.0f} examples/s, measured on a few steps")
    print(f"the whole run       about {minutes} min {seconds} s")
    print("dry run: nothing was written")


def _load(arguments: argparse.Namespace) -> Any:
    from twofold.device import choose_device
    from twofold.model import load

    return load(arguments.run, checkpoint=arguments.checkpoint, device=str(choose_device(arguments.device)))


def _sample(arguments: argparse.Namespace) -> int:
    from twofold.using import sample

    out, model = _out(arguments), _load(arguments)
    print(sample(model, arguments.n, seed=arguments.seed, label=arguments.label, out=out))
    return 0


def _reconstruct(arguments: argparse.Namespace) -> int:
    from twofold.using import reconstruct

    out, model = _out(arguments), _load(arguments)
    read = _read_options(arguments)
    print(reconstruct(model, arguments.n, data=arguments.data, data_options=read, seed=arguments.seed, out=out))
    return 0


def _complete(arguments: argparse.Namespace) -> int:
    from twofold.using import complete

    out, model = _out(arguments), _load(arguments)
    print(
        complete(
            model,
            arguments.n,
            known=arguments.known,
            variants=arguments.variants,
            data=arguments.data,
            data_options=_read_options(arguments),
            seed=arguments.seed,
            out=out,
        )
    )
    return 0


def _interpolate(arguments: argparse.Namespace) -> int:
    from twofold.using import interpolate

    out, model = _out(arguments), _load(arguments)
    print(
        interpolate(
            model,
            arguments.n,
            steps=arguments.steps,
            path=arguments.path,
            data=arguments.data,
            data_options=_read_options(arguments),
            label=arguments.label,
            seed=arguments.seed,
            out=out,
        )
    )
    return 0


def _explore(name: str) -> Callable[[argparse.Namespace], int]:
    """The function of a verb of `twofold.exploring`, whose parameters have the names of its options."""

    def run(arguments: argparse.Namespace) -> int:
        from inspect import signature

        from twofold import exploring

        function = getattr(exploring, name)
        out, model = _out(arguments), _load(arguments)
        given = {k: v for k, v in vars(arguments).items() if k in signature(function).parameters}
        record = function(model, **given | {"data_options": _read_options(arguments), "out": out})
        print(json.dumps(record, indent=2, ensure_ascii=False) if arguments.json else _found(record))
        return 0

    return run


def _found(record: dict[str, Any]) -> str:
    """What a person wants to know of a record: its numbers, a line each, and last where the file is."""
    lines = [f"{k:<20}{v:.4g}" for k, v in record.items() if isinstance(v, float)]
    if "ranked_by" in record:
        ranks = ", ".join(f"z{d['dimension']} {d['value']:.3g}" for d in record["dimensions"][:10])
        lines.append(_one_line(f"{record['ranked_by']}: {ranks}"))
    lines += [_one_line(f"+ {a['name']:<16}{a['examples']:>7,} examples, length {a['length']:.3g}")
              for a in record.get("attributes", ())]  # fmt: skip
    return "\n".join([*lines, record["file"]])


def _score(arguments: argparse.Namespace) -> int:
    from twofold.scoring import score

    out = _out_folder(arguments)
    names = ("data", "scores", "split", "n", "normal", "false_alarm", "by", "draws", "neighbours", "steps", "seed")
    given = {name: getattr(arguments, name) for name in names}
    record = score(_load(arguments), data_options=_read_options(arguments), out=out, **given)
    if arguments.json:
        print(json.dumps(record, indent=2, ensure_ascii=False))
        return 0
    print(_one_line(f"{record['examples']:,} examples of {record['data']} ({record['split']})"))
    shown = ("auroc", "aupr", "threshold", "false_alarm_rate", "detection_rate", "alarm_rate")
    for column, found in record["scores"].items():
        parts = [f"mean {found['mean']:.4g}"] if "mean" in found else []
        for name in shown:
            if name in found:
                error = f" ± {found[f'{name}_se']:.3f}" if f"{name}_se" in found else ""
                parts.append(f"{name} {found[name]:.4g}" if name == "threshold" else f"{name} {found[name]:.3f}{error}")
        print(f"{column:<24}{', '.join(parts)}")
    for name, reason in record.get("left_out", {}).items():
        print(f"{name} is left out: {reason}")
    print(record["out"])
    return 0


def _classify(arguments: argparse.Namespace) -> int:
    from twofold.scoring import classify

    out = _out(arguments, suffixes={".csv": "a .csv", ".json": "a .json"})
    given = {name: getattr(arguments, name) for name in ("data", "split", "n", "seed")}
    record = classify(_load(arguments), data_options=_read_options(arguments), out=out, **given)
    print(json.dumps(record, indent=2, ensure_ascii=False) if arguments.json else _found(record))
    return 0


def _out_folder(arguments: argparse.Namespace) -> Path | None:
    """The output folder, refused before the model is asked for anything."""
    if arguments.out is None:
        return None
    path = Path(arguments.out)
    if path.exists() and not path.is_dir():
        raise InputError(f"out is {arguments.out!r}, which is a file; give a folder")
    if not path.absolute().parent.is_dir():
        raise InputError(f"out is {arguments.out!r}, but there is no folder {str(path.parent)!r}")
    return path


def _evaluate(arguments: argparse.Namespace) -> int:
    from twofold.evaluation import availability, evaluate, results_table

    data = {"data": arguments.data, "data_options": _read_options(arguments)}
    if arguments.metrics == "list":
        print("\n".join(availability(arguments.run, **data)))
        return 0
    found = evaluate(
        _load(arguments),
        metrics=arguments.metrics,
        examples=arguments.examples,
        seed=arguments.seed,
        features=arguments.features,
        download=arguments.download,
        ignore=arguments.ignore,
        json=arguments.json,
        note=_progress,
        **data,
    )
    print(results_table(found.results))
    for name, reason in found.left_out.items():
        print(f"not measured: {name}: {_one_line(reason)}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    for name in arguments.names:
        recipes.find(name)
    from twofold.comparison import compare
    from twofold.display import Bar

    options, own = _settings(arguments.names, arguments.set)
    record = compare(
        arguments.names,
        data=arguments.data,
        out=arguments.out,
        seeds=arguments.seeds,
        examples=arguments.examples,
        batch_size=arguments.batch_size,
        device=arguments.device,
        metrics=arguments.metrics,
        evaluate_examples=arguments.evaluate_examples,
        features=arguments.features,
        ignore=arguments.ignore,
        equal=not arguments.own_networks,
        options=options,
        own_options=own,
        data_options=_read_options(arguments),
        watch=Bar,
        note=_tell,
    )
    for line in record["summary"]:
        print(line)
    print(f"all figures and pictures: {Path(arguments.out) / 'report.html'}")
    return 0


def _tell(line: str) -> None:
    if sys.stderr is not None:
        print(_one_line(line), file=sys.stderr, flush=True)


def _progress(name: str) -> None:
    """Says on a terminal what is being measured, over what was said before."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"\r\033[K{name} …", end="\r", file=sys.stderr, flush=True)


def _translate(arguments: argparse.Namespace) -> int:
    from twofold.translating import translate

    model = _load(arguments)
    given = {k: getattr(arguments, k) for k in ("out", "direction", "variants", "style", "fit", "seed")}
    written, notes = translate(model, arguments.input, **given)
    for note in notes:
        print(_one_line(f"note: {note}"))
    files = f"{len(written)} file{'s' * (len(written) > 1)}"
    print(f"wrote {files} to {arguments.out}, the first is {_one_line(str(written[0]))}")
    return 0


PICTURES = {".png": "a .png (a grid)", ".npz": "an .npz (arrays)"}


def _out(arguments: argparse.Namespace, *, suffixes: Mapping[str, str] = PICTURES) -> Path | None:
    """The output file, refused before the model is asked for anything."""
    if arguments.out is None:
        return None
    path = Path(arguments.out)
    if path.suffix not in suffixes:
        raise InputError(f"out is {arguments.out!r}; give {' or '.join(suffixes.values())}")
    if path.is_dir():
        raise InputError(f"out is {arguments.out!r}, which is a folder; give a file in it")
    if not path.parent.is_dir():
        raise InputError(f"out is {arguments.out!r}, but there is no folder {str(path.parent)!r}")
    return path
