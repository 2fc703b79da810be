"""The command line: list, data, train, convert, evaluate, publish, calibrate and classifier."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from export.recipe import Recipe, read_recipe, recipe_names
from service.manifest import Metric, read_manifest, version_folders

DEFAULT_STORE = Path("model_store")


def runs_folder() -> Path:
    """Return the folder of the runs, `$PTHETA_RUNS` or `runs/`."""
    return Path(os.environ.get("PTHETA_RUNS", "runs"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        Exit status: 0 when done, 1 when the user has to change something.
    """
    options = build_parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
    except ValidationError as error:
        return _fail(_one_line(error))
    except (ValueError, OSError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on from the last whole epoch")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Train generative image models and publish them for the service.",
        epilog="The usual order: train, convert, evaluate, publish. Data sets are read from "
        "$PTHETA_DATA (data/), runs are kept in $PTHETA_RUNS (runs/).",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_list(commands)
    _add_data(commands)
    _add_train(commands)
    _add_convert(commands)
    _add_evaluate(commands)
    _add_publish(commands)
    _add_calibrate(commands)
    _add_classifier(commands)
    return parser


def list_recipes(options: argparse.Namespace) -> None:
    """Show the shipped recipes, the families, and what the store holds."""
    from export.model import family_names  # noqa: PLC0415  (loads torch)

    published = version_folders(options.store)
    for name in recipe_names():
        recipe = read_recipe(name)
        versions = [f"@{version}" for other, version, _ in published if other == name]
        state = f"published {' '.join(versions)}" if versions else "not published"
        print(f"{name:18} {recipe.family:10} {state:16} {recipe.description}")
    print(f"\nfamilies: {', '.join(family_names())}")
    own = sorted({name for name, _, _ in published} - set(recipe_names()))
    if own:
        print(f"published from recipes of your own: {', '.join(own)}")
    print("\nnext: python -m export train RECIPE")


def list_data(options: argparse.Namespace) -> None:
    """Show the known data sets and whether their files are there and right."""
    from export.data import DATA_SETS, data_folder, state_of  # noqa: PLC0415

    print(f"data sets in {data_folder()} (set PTHETA_DATA to change that):")
    for name, data_set in DATA_SETS.items():
        print(f"{name:14} {state_of(data_set):50} {data_set.licence}")


def fetch_data(options: argparse.Namespace) -> None:
    """Download a data set and verify it."""
    from export.data import data_folder, fetch  # noqa: PLC0415

    fetch(options.name, data_folder(), tuple(options.mirror))


def train_recipe(options: argparse.Namespace) -> None:
    """Train a recipe, or go on."""
    overrides = list(options.set)
    if options.data:
        # Quoted, so that YAML takes a path such as 2024 for text.
        overrides += [f"data.source={json.dumps(options.data)}", "data.num_validation=0"]
    if options.name:
        overrides.append(f"name={json.dumps(options.name)}")
    recipe = read_recipe(options.recipe, overrides)
    run = runs_folder() / recipe.name

    import torch  # noqa: PLC0415

    from export.train import train  # noqa: PLC0415

    if options.threads:
        torch.set_num_threads(options.threads)
    if train(recipe, run, restart=options.restart, stop_after=options.stop_after):
        print(f"{run} is trained; next: python -m export convert {recipe.name}")
    else:
        print(f"{run} has epochs left; the same command without --stop-after goes on")


def convert_run(options: argparse.Namespace) -> None:
    """Convert a trained run into ONNX graphs."""
    from export.convert import convert  # noqa: PLC0415

    recipe, run = _recipe_and_run(options.name)
    bundle = convert(recipe, run)
    for path in sorted(bundle.glob("*.onnx")):
        print(f"{path} {path.stat().st_size:,} bytes, agrees with torch")
    print(f"next: python -m export evaluate {options.name}")


def evaluate_run(options: argparse.Namespace) -> None:
    """Measure a converted run, or the same model through a running service."""
    from export.convert import BUNDLE_FOLDER  # noqa: PLC0415
    from export.evaluate import evaluate, evaluate_over_http, read_metrics  # noqa: PLC0415

    recipe, run = _recipe_and_run(options.name)
    if options.url is None:
        for metric in evaluate(recipe, run):
            print(describe_metric(metric))
        print(f"next: python -m export publish {options.name}")
        return
    measured = evaluate_over_http(options.url, options.model or recipe.name, recipe)
    print(f"through {options.url}: {describe_metric(measured)}")
    for metric in read_metrics(run / BUNDLE_FOLDER):
        if metric.name == measured.name:
            print(f"in the model card: {describe_metric(metric)}")
            print(f"difference: {measured.value - metric.value:+.2g} {metric.unit}")


def publish_run(options: argparse.Namespace) -> None:
    """Publish a run as the next version of its model."""
    from export.publish import publish  # noqa: PLC0415

    recipe, run = _recipe_and_run(options.name)
    folder = publish(recipe, run, options.store, unfinished=options.unfinished)
    print(f"{folder} is published; next: start the service, or let a running one reload its store")


def calibrate_model(options: argparse.Namespace) -> None:
    """Add a calibration to the newest version of a published model."""
    from export.calibrate import calibrate_published  # noqa: PLC0415

    folders = [folder for name, _, folder in version_folders(options.store) if name == options.name]
    if not folders:
        raise FileNotFoundError(f"{options.store} holds no {options.name}: publish it first")
    folder = max(folders, key=lambda path: int(path.name))
    recipe = Recipe.model_validate(read_manifest(folder).training.recipe)
    calibration = calibrate_published(recipe, folder).calibration
    assert calibration is not None
    print(f"{folder} ranks images among {calibration.num_ranked:,} held-out ones")


def train_classifier(options: argparse.Namespace) -> None:
    """Train, freeze and measure a classifier by which generators are judged."""
    from export.classifier import make_classifier, read_classifier_recipe  # noqa: PLC0415

    report = make_classifier(read_classifier_recipe(options.name))
    print(
        f"{report.name} classifies {report.accuracy:.2%} ± {report.std_error:.2%} of the test "
        f"images rightly; {report.num_parameters:,} parameters, sha256 {report.sha256[:8]}"
    )


def describe_metric(metric: Metric) -> str:
    """Tell a figure in one line."""
    error = "" if metric.std_error is None else f" ± {metric.std_error:.2g}"
    return (
        f"{metric.name} {metric.value:.5g}{error} {metric.unit} "
        f"({metric.protocol}, {metric.num_images:,} images)"
    )


def _recipe_and_run(name: str) -> tuple[Recipe, Path]:
    run = runs_folder() / name
    path = run / "recipe.json"
    if not path.is_file():
        raise FileNotFoundError(f"there is no run {run}: begin with `python -m export train`")
    return Recipe.model_validate_json(path.read_bytes()), run


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


def _one_line(error: ValidationError) -> str:
    faults = (
        f"{'.'.join(map(str, fault['loc'])) or error.title}: {fault['msg']}"
        for fault in error.errors()
    )
    return "; ".join(faults)


def _add_list(commands: Any) -> None:
    parser = commands.add_parser("list", help="recipes, families, and what is published")
    _add_store(parser)
    parser.set_defaults(command=list_recipes)


def _add_data(commands: Any) -> None:
    parser = commands.add_parser("data", help="known data sets, and how to get them")
    parser.set_defaults(command=list_data)
    fetch = parser.add_subparsers(metavar="fetch").add_parser(
        "fetch", help="download a data set and verify it"
    )
    fetch.add_argument("name", metavar="NAME", help="name of the data set")
    fetch.add_argument(
        "--mirror",
        metavar="URL",
        action="append",
        default=[],
        help="fetch URL + file name + .gz from here instead; may be given several times",
    )
    fetch.set_defaults(command=fetch_data)


def _add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a recipe, or go on where it stopped",
        description="Train a recipe. A run that was stopped or killed goes on from its last "
        "whole epoch when the same command is given again.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a shipped name, or a .yaml path")
    parser.add_argument(
        "--set",
        metavar="SECTION.FIELD=VALUE",
        action="append",
        default=[],
        help="change the recipe, as in --set training.epochs=3; may be given several times",
    )
    parser.add_argument("--name", help="name of the run and of the model instead of the recipe's")
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="an .npz or a folder of images of your own; short for --set data.source=PATH "
        "--set data.num_validation=0",
    )
    parser.add_argument("--restart", action="store_true", help="forget what the run holds")
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads to use")
    parser.add_argument(
        "--stop-after", type=_positive, metavar="N", help="stop after N epochs in all"
    )
    parser.set_defaults(command=train_recipe)


def _add_convert(commands: Any) -> None:
    parser = commands.add_parser(
        "convert", help="make ONNX graphs of a trained run and check them against torch"
    )
    _add_run_name(parser)
    parser.set_defaults(command=convert_run)


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser("evaluate", help="measure a converted run on the test images")
    _add_run_name(parser)
    parser.add_argument("--url", help="measure through the service at this address instead")
    parser.add_argument("--model", help="name there, with or without @version")
    parser.set_defaults(command=evaluate_run)


def _add_publish(commands: Any) -> None:
    parser = commands.add_parser(
        "publish",
        help="write the next version of a model into the store",
        description="Convert and evaluate where that was not done since training, then write the "
        "bundle into the store in one step.",
    )
    _add_run_name(parser)
    _add_store(parser)
    parser.add_argument(
        "--unfinished", action="store_true", help="publish even if the run has epochs left"
    )
    parser.set_defaults(command=publish_run)


def _add_calibrate(commands: Any) -> None:
    parser = commands.add_parser(
        "calibrate",
        help="let a published model without p-values tell them",
        description="Score the images that were held out of training and store the scores in the "
        "newest version of a published model. `publish` does so by itself.",
    )
    parser.add_argument("name", metavar="NAME", help="name of the model")
    _add_store(parser)
    parser.set_defaults(command=calibrate_model)


def _add_classifier(commands: Any) -> None:
    parser = commands.add_parser(
        "classifier",
        help="train and freeze a classifier by which generators are judged",
        description="Train a classifier of export/classifiers/ anew. Figures of generators name "
        "the hash of their classifier: with another one, all of them have to be measured again.",
    )
    parser.add_argument("name", metavar="NAME", help="lenet-mnist, for example")
    parser.set_defaults(command=train_classifier)


def _add_run_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the run")


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", type=Path, default=DEFAULT_STORE, metavar="PATH", help="the model store"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


if __name__ == "__main__":
    sys.exit(main())
