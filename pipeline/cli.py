"""Parse options, call one library function, print its result. Nothing is decided here.

A command imports its stage when it runs, so that `pipeline --help` loads neither torch nor scikit-learn. Options are
read from the settings classes of `pipeline.config`: a field there is an option here.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import click
from click.shell_completion import CompletionItem

from pipeline.commands.results import Result
from pipeline.config import (
    SOURCES,
    CompareSettings,
    EvaluateSettings,
    ExtractSettings,
    FetchSettings,
    FinetuneSettings,
    FitSettings,
    LabelSettings,
    PlotSettings,
    RerunSettings,
    Settings,
    SourceSettings,
)
from pipeline.config.signatures import takes_paths
from pipeline.errors import BaseError, PipelineError, SettingsError, require_posix
from pipeline.interruption import Stopped, flush_streams, obeying_signals
from pipeline.text import lines_shown, shown

Command = TypeVar("Command", bound=Callable[..., Any])


class Group(click.Group):
    """A group of commands in the order of the journey, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List commands in the order of their definition."""
        return list(self.commands)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="cached-feature-pipeline", prog_name="pipeline")
def cli() -> None:
    """Transfer learning with the expensive part done once.

    Stage one runs a frozen, pretrained base over the images and keeps its features in an HDF5 file; stage two trains
    heads on that file in seconds; stage three, optional, fine-tunes.
    """


def settings_options(settings: type[Settings], *names: str) -> Callable[[Command], Command]:
    """Add one option for each field of `settings`, or for those called `names`.

    Options that are not given stay out of the call, so that defaults stand in one place.
    """

    def decorate(command: Command) -> Command:
        for name in reversed(names or tuple(settings.model_fields)):
            field = settings.model_fields[name]
            default = field.default
            shown = ",".join(default) if isinstance(default, tuple) else default
            text = f"{field.description}" + ("" if shown in (None, "") or shown is False else f"  [default: {shown}]")
            flags = [f"--{name.replace('_', '-')}", name]
            if bool in _alternatives(field.annotation):
                if field.annotation is not bool:  # left out, it is decided elsewhere: so both can be said
                    flags[0] += f"/--no-{name.replace('_', '-')}"
                command = click.option(*flags, is_flag=True, default=None, help=text)(command)
            else:
                kind = click.Path() if takes_paths(field) else _click_type(field.annotation)
                many = isinstance(default, tuple)
                shape = None if isinstance(kind, click.Choice) else _metavar(name, field.annotation)
                offered = _offering(field.examples) if field.examples else None
                option = click.option(
                    *flags, type=kind, multiple=many, metavar=shape, help=text, shell_complete=offered
                )
                command = option(command)
        return command

    return decorate


def _offering(words: Sequence[str]) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Let the shell offer `words`, and whatever goes with the type of the option."""

    def offer(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        offered = [CompletionItem(word) for word in words if word.startswith(begun)]
        return offered + parameter.type.shell_complete(context, parameter, begun)

    return offer


def _click_type(annotation: Any) -> click.ParamType[Any]:
    """Return a choice where the field has only words; text otherwise, which the settings class then parses."""
    if typing.get_origin(annotation) is Literal:
        return click.Choice(typing.get_args(annotation))
    parts = _alternatives(annotation)
    return _click_type(parts[0]) if len(parts) == 1 and parts[0] is not annotation else click.STRING


def _alternatives(annotation: Any) -> list[Any]:
    """Return the members of a union, None left out; of anything else, itself."""
    parts = [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(annotation) if part is not type(None)]
    return [typing.get_args(part)[0] if typing.get_origin(part) is Annotated else part for part in parts]


def _metavar(name: str, annotation: Any) -> str:
    """Return the word for a value in the help: N, X, auto|N, or the last word of the option."""
    word = name.rsplit("_", 1)[-1].upper()
    signs = {int: "N", float: "X"}
    shown = [
        "|".join(typing.get_args(part)) if typing.get_origin(part) is Literal else signs.get(part, word)
        for part in _alternatives(annotation)
    ]
    return "|".join(shown)


def reporting(command: Command) -> Command:
    """Add the options that every command has: --json, -q, -v."""
    command = click.option("-v", "--verbose", is_flag=True, help="More messages on stderr.")(command)
    command = click.option("-q", "--quiet", is_flag=True, help="Only errors on stderr.")(command)
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")(command)


def output_option(default: str | None = None) -> Callable[[Command], Command]:
    """Add `-o`, required unless there is a default."""
    given = {"required": True} if default is None else {"default": default, "show_default": True}
    return click.option("-o", "--output", type=click.Path(path_type=Path), help="Path of the result.", **given)


force_option = click.option("--force", is_flag=True, help="Replace an output that exists.")
retrain_option = click.option("--force", is_flag=True, help="Run every step again; features are never discarded.")


def listing_sources(command: Command) -> Command:
    """Put the kinds of source in the place of ``{sources}`` in the docstring, which is the command's help."""
    if command.__doc__ is not None:  # python -OO has none
        # After \b click keeps the lines of a paragraph as they are.
        lines = "\n".join(["\b", *(f"      {description}" for description in SOURCES.values())])
        command.__doc__ = command.__doc__.format(sources=lines)
    return command


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the user gave."""
    return {name: value for name, value in options.items() if value is not None and value != ()}


class LineFormatter(logging.Formatter):
    """A formatter of log records as they may be printed."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text, with whatever is no plain character escaped."""
        return shown(super().format(record))


def begin(*, quiet: bool, verbose: bool) -> None:
    """Send the package's log to stderr at the level asked for."""
    level = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter("%(levelname)s: %(message)s"))
    log = logging.getLogger("pipeline")
    log.handlers[:] = [handler]
    log.setLevel(level)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of settings, of which ours are not made


def tell(result: Result, *, as_json: bool) -> None:
    """Print a result, for a program or for a person."""
    if as_json:
        print_json(result.to_json())
    else:
        print_lines(result.summary())


def print_json(content: dict[str, Any]) -> None:
    """Print one object on stdout, in ASCII: JSON escapes every other control character by itself."""
    click.echo(json.dumps(content).replace("\x7f", r"\u007f"))


def print_lines(text: str) -> None:
    """Print lines on stdout, with what they quote from files escaped."""
    click.echo(lines_shown(text))


@cli.command()
@click.argument("source", type=click.Path())
@output_option()
@settings_options(ExtractSettings)
@click.option("--dry-run", is_flag=True, help="Print rows, time and size; write nothing.")
@force_option
@reporting
@listing_sources
def extract(
    source: str, output: Path, dry_run: bool, force: bool, as_json: bool, quiet: bool, verbose: bool, **options: Any
) -> None:
    """Stage 1: images to features, once, in an HDF5 file.

    The same command again computes only what is missing. SOURCE is one of:

    {sources}
    """
    from pipeline.commands.extract import extract as stage
    from pipeline.commands.extract import rehearse

    begin(quiet=quiet, verbose=verbose)
    if dry_run:
        tell(rehearse(source, output, force=force, **given(options)), as_json=as_json)
        return
    tell(stage(source, output, force=force, progress=not quiet, **given(options)), as_json=as_json)


@cli.command("fit-head")
@click.argument("stores", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="STORE...")
@output_option()
@settings_options(FitSettings)
@force_option
@reporting
def fit_head(
    stores: tuple[Path, ...], output: Path, force: bool, as_json: bool, quiet: bool, verbose: bool, **options: Any
) -> None:
    """Stage 2: train a head on the cached features of STORE.

    Several STOREs are of the same images, each through another base: their features stand side by side.
    """
    from pipeline.commands.fit_head import fit_head as stage

    begin(quiet=quiet, verbose=verbose)
    tell(stage(stores, output, force=force, progress=not quiet, **given(options)), as_json=as_json)


@cli.command()
@click.argument("source", type=click.Path())
@output_option()
@settings_options(FinetuneSettings)
@force_option
@reporting
def finetune(source: str, output: Path, force: bool, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Stage 3, optional: train the network too, wholly or in part.

    SOURCE is images with labels, as extract takes them.
    """
    from pipeline.commands.finetune import finetune as stage

    begin(quiet=quiet, verbose=verbose)
    tell(stage(source, output, force=force, progress=not quiet, **given(options)), as_json=as_json)


threshold_option = click.option(
    "--threshold", metavar="CLASS[=P]", help="Answer CLASS from probability P on; without P, that of the best F1."
)

#: The options of commands that run a recipe again.
running = settings_options(RerunSettings, "weights", "device", "engine", "max_pixels")


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(), metavar="IMAGE...")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Classes to list.")
@click.option("--csv", "table", type=click.Path(path_type=Path), help="Write the predictions to this file too.")
@threshold_option
@click.option("--no-unknown", is_flag=True, help="Say nothing of how unlike the training pictures an image is.")
@running
@reporting
def predict(
    model: Path,
    images: tuple[str, ...],
    top: int,
    table: Path | None,
    no_unknown: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Predict the class or number of images with MODEL.

    An IMAGE is a file, or a folder of which all images are meant.
    """
    from pipeline.commands.predict import predict as stage

    begin(quiet=quiet, verbose=verbose)
    result = stage(model, images, top=top, csv=table, no_unknown=no_unknown, progress=not quiet, **given(options))
    tell(result, as_json=as_json)
    if result.all_bad:
        raise SystemExit(1)


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@output_option()
@click.option(
    "--input",
    type=click.Choice(["image", "pixels"]),
    default="image",
    show_default=True,
    help="image: RGB of any size; pixels: a batch that was resized already.",
)
@settings_options(RerunSettings, "weights")
@force_option
@reporting
def export(model: Path, output: Path, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Write MODEL as one ONNX file, for any runtime and language.

    It goes from the pixels of an image to its answer.

    A feature file F.h5 is written as a Parquet table for viewers of embeddings: ids, labels, thumbnails, a map.
    """
    from pipeline.commands.export import export as stage

    begin(quiet=quiet, verbose=verbose)
    tell(stage(model, output, progress=not quiet, **given(options)), as_json=as_json)


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("sources", nargs=-1, required=True, type=click.Path(), metavar="SOURCE...")
@click.option(
    "--split",
    type=click.Choice(["auto", "train", "val", "test", "all"]),
    default="auto",
    show_default=True,
    help="Rows to score; auto: test, else val, where SOURCE has them; else what did not train MODEL.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for metrics, predictions and plots.")
@threshold_option
@settings_options(EvaluateSettings, "group")
@settings_options(SourceSettings)
@running
@force_option
@reporting
def evaluate(model: Path, sources: tuple[str, ...], as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Score MODEL on other images or features.

    SOURCE is a feature file (one of each base), or labelled images as extract takes them.
    """
    from pipeline.commands.evaluate import evaluate as stage

    begin(quiet=quiet, verbose=verbose)
    tell(stage(model, sources, progress=not quiet, **given(options)), as_json=as_json)


@cli.command()
@click.argument("filter", default="")
@click.option("--modules", is_flag=True, help="The modules of the base FILTER: the names for --layer and --train.")
@settings_options(FinetuneSettings, "train", "layer")
@reporting
def bases(filter: str, modules: bool, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """List the bases whose name holds FILTER, or one's modules.

    A line has name, dimensions, parameters, layers and weights.

    With --modules, FILTER is the name of one base, and its modules are listed with the shapes of their outputs and
    their parameters; --train says which of them a fine-tuning would train, --layer which layers its head would take.
    """
    from pipeline.commands.bases import BaseInfo, describe_modules, find_bases

    begin(quiet=quiet, verbose=verbose)
    if modules and not filter:
        raise click.UsageError("--modules is about one base: give its name")
    if modules:
        tell(describe_modules(filter, **given(options)), as_json=as_json)
        return
    if given(options):
        raise click.UsageError("--train and --layer are about the modules of one base: give --modules too")
    found = []
    for base in find_bases(filter):
        found.append(base)
        if not as_json:
            print_lines(base.summary())
    if as_json:
        usable = [base.to_json() for base in found if isinstance(base, BaseInfo)]
        unusable = {base.name: base.cause for base in found if not isinstance(base, BaseInfo)}
        print_json({"bases": usable, "unusable": unusable})
    elif not found:
        raise BaseError(f"no base has {shown(filter)!r} in its name; pipeline bases lists them")


@cli.command()
@click.argument("path", type=click.Path(path_type=Path))
@reporting
def info(path: Path, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Describe a feature file, a folder of parts, or a model."""
    from pipeline.commands.info import info as stage

    begin(quiet=quiet, verbose=verbose)
    tell(stage(path), as_json=as_json)


@cli.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option(
    "--source", metavar="SOURCE", help="Its images; else those that the file names, if it names a file or a folder."
)
@click.option(
    "--recompute", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Rows to extract anew."
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=13,
    show_default=True,
    metavar="N",
    help="Seed of the choice of those rows.",
)
@running
@reporting
def verify(store: Path, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Check every byte of a feature file.

    With --recompute N also that N rows are what their images give today.
    """
    from pipeline.commands.verify import verify as stage

    begin(quiet=quiet, verbose=verbose)
    result = stage(store, **given(options))
    tell(result, as_json=as_json)
    if not result.ok:
        raise SystemExit(1)


@cli.command()
@click.argument("parts", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PART...")
@output_option()
@force_option
@reporting
def merge(parts: tuple[Path, ...], output: Path, force: bool, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Make one feature file of its parts.

    A PART is a file, or a folder of them.
    """
    from pipeline.commands.merge import merge as stage

    begin(quiet=quiet, verbose=verbose)
    tell(stage(parts, output, force=force), as_json=as_json)


@cli.command()
@click.argument("lists", nargs=-1, required=True, metavar="[CLASS=]URLS.txt...")
@output_option()
@settings_options(FetchSettings)
@reporting
def fetch(lists: tuple[str, ...], output: Path, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Download the images of lists of URLs.

    A list has a URL a line; images.csv in the output is a source for extract.
    """
    from pipeline.commands.fetch import fetch as stage

    begin(quiet=quiet, verbose=verbose)
    tell(stage(lists, output, progress=not quiet, **given(options)), as_json=as_json)


@cli.command()
@click.argument("source")
@output_option()
@settings_options(LabelSettings)
@force_option
@reporting
def label(source: str, output: Path, force: bool, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Draw a random number for each image by its class.

    The table is a source for extract, and its histogram stands beside it.
    """
    from pipeline.commands.label import label as stage

    begin(quiet=quiet, verbose=verbose)
    tell(stage(source, output, force=force, **given(options)), as_json=as_json)


@cli.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="MODEL...")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="PNG of the scores with their intervals.")
@settings_options(CompareSettings)
@force_option
@reporting
def compare(models: tuple[Path, ...], as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Compare models on the same rows.

    A MODEL is a model folder, or one of evaluate -o. Differences have paired intervals.
    """
    from pipeline.commands.compare import compare as stage

    begin(quiet=quiet, verbose=verbose)
    tell(stage(models, **given(options)), as_json=as_json)


@cli.command()
@click.argument("path", type=click.Path(), metavar="MODEL|STORE|SOURCE")
@output_option()
@settings_options(PlotSettings)
@force_option
@reporting
def plot(path: str, output: Path, force: bool, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Draw pictures of a model, a feature file or images.

    One --kind goes to a file NAME.png, several or all there are to a folder.
    """
    from pipeline.commands.plot import plot as stage

    begin(quiet=quiet, verbose=verbose)
    tell(stage(path, output, force=force, **given(options)), as_json=as_json)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--root", type=click.Path(path_type=Path), help="Folder that paths start from, not that of the file.")
@click.option("--set", multiple=True, metavar="TABLE.KEY=VALUE", help="A value over the file's; *.KEY: in all tables.")
@click.option("--dry-run", is_flag=True, help="Print which steps are up to date and which would run; run none.")
@retrain_option
@reporting
def run(config: Path, dry_run: bool, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Run the experiment that a TOML file describes.

    Its tables are commands. A step that is up to date is left as it is.
    """
    from pipeline.commands.run import ExperimentResult, run_steps

    begin(quiet=quiet, verbose=verbose)
    done = ExperimentResult(config, [])

    def announce(heading: str) -> None:
        if not quiet and not dry_run:
            click.echo(lines_shown(heading), err=True)

    try:
        for step in run_steps(config, dry_run=dry_run, progress=not quiet, watch=announce, **given(options)):
            done.steps.append(step)
            if not as_json:
                print_lines(step.summary() + "\n")
    finally:  # what was done is told, also where a later step fails or is stopped
        if as_json and done.steps:
            print_json(done.to_json())
        elif done.steps:
            print_lines(done.table())


@cli.command()
@output_option("artifacts/demo")
@reporting
def demo(output: Path, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Run every stage once, offline, on handwritten digits.

    They become features, heads, predictions and plots.
    """
    from pipeline.commands.demo import demo as stage

    begin(quiet=quiet, verbose=verbose)
    tell(stage(output, progress=not quiet), as_json=as_json)


@cli.command()
@click.option("--clean", is_flag=True, help="Remove the activations that finetune has cached.")
@reporting
def doctor(clean: bool, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Look at this machine and what is installed, for a bug report.

    That is versions, CPU, engines, devices, caches and room.
    """
    from pipeline.commands.doctor import doctor as stage

    begin(quiet=quiet, verbose=verbose)
    result = stage(clean=clean)
    tell(result, as_json=as_json)
    if not result.ok:
        raise SystemExit(1)


#: What a stop leaves behind, command by command.
KEPT = {
    "extract": "the rows that were computed are kept, and the same command goes on from there",
    "fit-head": "no model was saved; the cached features are as they were",
    "finetune": "the epochs that ended are kept, and the same command goes on after them",
    "fetch": "the images that are there are kept, and the same command goes on from there",
    "run": "what its finished steps wrote is kept, rows and epochs too; the same command goes on from there",
    "demo": "the images and features made so far are kept; the same command makes the rest",
    "merge": "nothing was merged; the parts are as they were",
}


#: What click raises with the help as its message where there is no command; before 8.2 it prints that itself.
_HELP = getattr(click.exceptions, "NoArgsIsHelpError", ())


def main() -> NoReturn:
    """Run the command line; every error of this package is one line on stderr."""
    os.environ["PYTHONSAFEPATH"] = "1"  # no process that we start imports what lies in the current folder
    _open_closed_streams()
    _hush_all_but_the_first()
    with obeying_signals(_epitaph) as interruption:
        try:
            status = _call()
        except Stopped as stop:
            status = stop.status
        if interruption.status is not None:  # whatever became of the exception on its way through others' code
            flush_streams()
            interruption.leave(interruption.status)
    sys.exit(status)


def _call() -> int:
    try:
        require_posix()  # now, not after seconds of importing torch
        return cli.main(standalone_mode=False) or 0
    except click.ClickException as error:
        if not isinstance(error, _HELP):
            vars(error)["message"] = shown(error.message)  # it may quote the name of a file
        error.show()
        return error.exit_code
    except click.Abort:  # click's name for Ctrl-C
        return 130
    except SettingsError as error:
        return _failed(str(error), 2)
    except PipelineError as error:
        return _failed(str(error), 1)
    except BrokenPipeError:  # the reader of our output left: nothing more to say to anybody
        sys.stderr.close()
        return 1
    except OSError as error:
        return _failed(f"{error.filename or 'the output'}: {error.strerror or error}", 1)


def _open_closed_streams() -> None:
    """Open standard streams that the shell closed: the next file would take their place, and messages go into it."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - as long as the process
            os.dup2(getattr(sys, name).fileno(), number)


def _hush_all_but_the_first() -> None:
    """Leave speaking to the first of the processes that torchrun started for one command."""
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK") != "0":
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)


def _epitaph() -> str:
    """Return the last line of a command that was stopped."""
    command = next((word for word in sys.argv[1:] if word in cli.commands), "")
    wrote = command in KEPT and "--dry-run" not in sys.argv
    return f"stopped; {KEPT[command] if wrote else 'nothing was written'}"


def _failed(message: str, status: int) -> int:
    click.echo("error: " + lines_shown(" ".join(message.split())), err=True)
    return status
