"""The command line: parse, call a verb, show the result. No mathematics, and no heavy import before it is needed.

argparse rather than a generator of command lines from types: it is imported in milliseconds, its messages can be one
line, and a recipe's options are known only once the recipe's name has been read.

Exit codes: 0 success, 1 training could not go on, 2 bad usage or bad input (one line on stderr), 130 after Ctrl-C
with the state saved.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from twofold import __version__, recipes
from twofold.errors import InputError, unknown


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's) and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except InputError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt as error:
        return _fail(str(error) or "interrupted", 130)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nothing is wrong, and Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RuntimeError as error:
        from twofold.training import TrainingError

        if isinstance(error, TrainingError):
            return _fail(str(error), 1)
        raise


def _fail(message: str, code: int) -> int:
    print("twofold: " + " ".join(message.split()), file=sys.stderr)
    return code


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
    raise InputError(f"{parser.prog}: unexpected {word!r}; see {parser.prog} --help")


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `InputError`s and which knows no abbreviations."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": _Help, **kwargs})

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}; see {self.prog} --help")


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=110)


def _parser(words: list[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="twofold",
        description="Explicit × implicit generative models: train, look at and use VAEs, GANs and their hybrids.",
        epilog="Start with: twofold recipes, then twofold train vae-gan --data digits",
    )
    parser.add_argument("--version", action="version", version=f"twofold {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", parser_class=_Parser)

    def verb(name: str, function: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        child = verbs.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        child.set_defaults(run_verb=function, parser=child)
        return child

    listing = verb("recipes", _recipes, "list the systems there are")
    listing.add_argument("--json", action="store_true", help="as JSON")

    shown = verb("show", _show, "print a recipe's routing table, networks and options")
    shown.add_argument("name", metavar="RECIPE", help="a name from `twofold recipes`")
    shown.add_argument("--json", action="store_true", help="as JSON")
    shown.add_argument("--data", metavar="SOURCE", help="size the networks for this data (default: 28×28 grey images)")

    data = verb("data", _data, "list the built-in data, or say what is found in a source")
    data.add_argument("source", metavar="SOURCE", nargs="?", help="a built-in name, a folder or a file")
    _data_options(data)

    training = verb("train", _train, "train a recipe on data, into a run directory")
    _train_options(training)
    if words[:1] == ["train"] and (name := next((w for w in words[1:] if not w.startswith("-")), None)):
        _recipe_options(training, name)
    elif words[:1] == ["show"] and (name := next((w for w in words[1:] if not w.startswith("-")), None)):
        _recipe_options(shown, name)

    sample = verb("sample", _sample, "draw samples from a trained run")
    _model_options(sample)
    sample.add_argument("-n", type=_count, default=64, metavar="N", help="how many (default: 64)")
    sample.add_argument("--label", type=int, metavar="K", help="of this class (conditional models)")
    sample.add_argument("--out", metavar="FILE", help="a .png grid or an .npz with `samples` (default: in the run)")

    rec = verb("reconstruct", _reconstruct, "encode and decode examples with a trained run")
    _model_options(rec)
    rec.add_argument("-n", type=_count, default=16, metavar="N", help="how many test examples (default: 16)")
    rec.add_argument("--data", metavar="SOURCE", help="examples to reconstruct (default: the run's own data)")
    rec.add_argument("--out", metavar="FILE", help="a .png or an .npz with `x` and `x_rec` (default: in the run)")

    between = verb("interpolate", _interpolate, "decode the way from one code to another")
    _model_options(between)
    between.add_argument("-n", type=_count, default=8, metavar="N", help="pairs of codes (default: 8)")
    between.add_argument("--steps", type=_count, default=8, metavar="K", help="pictures from one to the other")
    between.add_argument("--path", choices=("slerp", "lerp"), default="slerp", help="great circle or straight line")
    between.add_argument("--data", metavar="SOURCE", help="between codes of examples instead of codes of the prior")
    between.add_argument("--label", type=int, metavar="K", help="of this class (conditional models)")
    between.add_argument("--out", metavar="FILE", help="a .png or an .npz with `x` (default: in the run)")
    return parser


# Options.


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def _size(text: str) -> int | tuple[int, int]:
    height, cross, width = text.lower().partition("x")
    return (int(height), int(width)) if cross else int(text)


def _number_or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        return None if text.lower() == "none" else kind(text)

    parse.__name__ = kind.__name__
    return parse


def _data_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("reading data")
    group.add_argument("--size", type=_size, metavar="N|HxW", help="resize images to this, keeping their aspect")
    group.add_argument("--channels", type=int, choices=(1, 3, 4), help="convert images to this many channels")
    group.add_argument("--range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="what float images span")
    group.add_argument("--labels", metavar="NAME", help="a file of labels, an array's name or a column's name")
    group.add_argument("--strict", action="store_true", help="refuse broken files instead of skipping them")
    group.add_argument("--holdout", type=float, default=0.1, metavar="F", help="part kept for testing (default: 0.1)")


def _read_options(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {
        "size": arguments.size,
        "channels": arguments.channels,
        "value_range": tuple(arguments.range) if arguments.range else None,
        "labels": arguments.labels,
        "strict": arguments.strict or None,
        "holdout": arguments.holdout if arguments.holdout != 0.1 else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _train_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="RECIPE", help="a name from `twofold recipes`; its own options: RECIPE --help")
    parser.add_argument("--data", metavar="SOURCE", required=True, help="a built-in name, a folder or a file")
    parser.add_argument("--out", metavar="DIR", help="the run directory (default: a fresh one under runs/)")
    parser.add_argument("--examples", type=_count, default=100_000, metavar="N", help="length in examples seen")
    parser.add_argument("--batch-size", type=_count, default=64, metavar="B", help="examples in a batch (default: 64)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of weights, data order and noise")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32", help="bf16: autocast")
    parser.add_argument("--flip", action="store_true", help="mirror images at random")
    parser.add_argument("--crop", type=int, default=0, metavar="P", help="pad by P pixels and crop back at random")
    parser.add_argument("--accumulate", type=_count, default=1, metavar="K", help="compute a batch in K parts")
    parser.add_argument("--on-nonfinite", choices=("stop", "skip"), default="stop", help="when a loss is not finite")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out exactly where it stopped")
    parser.add_argument("--dry-run", action="store_true", help="print config, size, memory and time; write nothing")
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events into the run")
    _data_options(parser)


def _recipe_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Add a flag for each field of the recipe's Config. Flags left out keep their default."""
    try:
        entry = recipes.find(name)
    except InputError:
        return  # the verb will say so, after the other arguments have been read
    default = recipes.default_config(entry)
    group = parser.add_argument_group(f"options of {name}", f"{entry.paper} ({entry.year})")
    for field in fields(default):
        value = getattr(default, field.name)
        help = f"{field.metadata.get('help', '')} (default: {'none' if value is None else value})".replace("%", "%%")
        common: dict[str, Any] = {"dest": f"option_{field.name}", "default": argparse.SUPPRESS, "help": help}
        flag = f"--{field.name.replace('_', '-')}"
        kinds = str(field.type).replace(" ", "").split("|")
        if "bool" in kinds:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
            continue
        kind = {"int": int, "float": float}.get(kinds[0], str)
        if choices := field.metadata.get("choices"):
            group.add_argument(flag, choices=tuple(choices), **common)
        else:
            parse = _number_or_none(kind) if "None" in kinds else kind
            group.add_argument(flag, type=parse, metavar=kinds[0].upper(), **common)


def _chosen(arguments: argparse.Namespace) -> dict[str, Any]:
    return {k.removeprefix("option_"): v for k, v in vars(arguments).items() if k.startswith("option_")}


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed gives the same result")
    parser.add_argument("--checkpoint", type=int, metavar="N", help="the checkpoint at N examples (default: newest)")
    parser.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda, cuda:1, mps (default: cpu)")


# Verbs.


def _recipes(arguments: argparse.Namespace) -> int:
    if arguments.json:
        print(json.dumps(recipes.listing(), indent=2, ensure_ascii=False))
        return 0
    for family in (recipes.EXPLICIT, recipes.IMPLICIT, recipes.HYBRID):
        print(family)
        for entry in recipes.ENTRIES:
            if entry.family == family:
                print(f"  {entry.name:<18}{entry.summary}")
                print(f"  {'':<18}{entry.paper} ({entry.year}); {', '.join(entry.data_kinds)}")
    print("\ntwofold show RECIPE prints its routing table; twofold train RECIPE --help its options")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    recipes.find(arguments.name)
    from twofold.overview import EXAMPLE, show, show_text

    spec = EXAMPLE
    if arguments.data:
        from twofold.data import load

        spec = load(arguments.data).spec
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
            print(f"{source.name:<16}{source.kind:<8}{shape:<12}{source.examples:>9,}  {source.description}")
        print(
            "\nYour own: a folder of images (class subfolders become labels), .npz, .npy, idx or CSV files; "
            "twofold data PATH says what is found"
        )
        return 0
    from twofold.data import describe, load

    for line in describe(load(arguments.source, **_read_options(arguments))):
        print(line)
    return 0


def _train(arguments: argparse.Namespace) -> int:
    recipes.find(arguments.name)
    from twofold.display import Bar
    from twofold.training import Settings, estimate, prepare, train

    settings = {
        f.name: getattr(arguments, f.name) for f in fields(Settings)
    }  # every field of Settings has a flag of its name
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
        tensorboard=arguments.tensorboard,
        watch=Bar(),
        **settings,
        **common,
    )
    assert model.run is not None
    path = model.run.path
    print(f"trained {arguments.name} on {model.examples:,} examples: {path}")
    print(f"look at {path / 'report.html'}, or: twofold sample {path} -n 64")
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

    print(sample(_load(arguments), arguments.n, seed=arguments.seed, label=arguments.label, out=_out(arguments)))
    return 0


def _reconstruct(arguments: argparse.Namespace) -> int:
    from twofold.using import reconstruct

    print(reconstruct(_load(arguments), arguments.n, data=arguments.data, seed=arguments.seed, out=_out(arguments)))
    return 0


def _interpolate(arguments: argparse.Namespace) -> int:
    from twofold.using import interpolate

    model = _load(arguments)
    print(
        interpolate(
            model,
            arguments.n,
            steps=arguments.steps,
            path=arguments.path,
            data=arguments.data,
            label=arguments.label,
            seed=arguments.seed,
            out=_out(arguments),
        )
    )
    return 0


def _out(arguments: argparse.Namespace) -> Path | None:
    """The output file, refused before the model is asked for anything."""
    if arguments.out is None:
        return None
    path = Path(arguments.out)
    if path.suffix not in (".png", ".npz"):
        raise InputError(f"out is {arguments.out!r}; give a .png (a grid) or an .npz (arrays)")
    if not path.parent.is_dir():
        raise InputError(f"out is {arguments.out!r}, but there is no folder {str(path.parent)!r}")
    return path
