# SPDX-License-Identifier: Apache-2.0
"""The command line. Errors are one line on standard error; exit codes are documented in ``docs/exit-codes.rst``."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from art_medical import __version__
from art_medical.cli_zoo import zoo_app
from art_medical.console import Bars, figure, one_line, open_console
from art_medical.errors import ArtMedicalError

if TYPE_CHECKING:
    from rich.console import Console

    from art_medical.evaluation.results import Results

app = typer.Typer(
    name="art-medical",
    help="Measure how robust a medical image classifier is against attacks on its input.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(zoo_app, name="zoo")

DEFAULT_OUT = Path("art-medical-report")
INTERRUPTED = 130
MOST_WORDS = 1000
"""Most characters of an error: names that it repeats may be of any length."""


def _version(asked: bool) -> None:
    if asked:
        print(f"art-medical {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def evaluate(
    study: Annotated[Path | None, typer.Argument(help="Study file; without it the embedded phantom study.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with labels.csv and images/, or an npz file.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Evaluate this model instead of those that the study names.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where results.json, report.html and finished cells go.")] = DEFAULT_OUT,
    limit: Annotated[int | None, typer.Option(min=2, help="Use at most so many test images.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print results.json on standard output.")] = False,
    device: Annotated[str, typer.Option(help="cpu, gpu or a torch device such as cuda:1.")] = "cpu",
) -> None:
    """Run a study: attack the models, write results.json and report.html. A cut run continues where it stopped."""
    from art_medical.evaluation import study as studies

    chosen = studies.embedded_study() if study is None else studies.read_study(study)
    if model is not None:
        chosen = chosen.model_copy(update={"models": (model,)})
    console = open_console(stderr=json)
    _writable(out)
    with Bars(console) as progress:
        # After the bar is up: these imports take seconds.
        from art_medical.evaluation.runner import evaluate as run
        from art_medical.evaluation.store import Store

        results = run(chosen, data=data, store=Store(out / "cells"), limit=limit, device=device, progress=progress)
    _write_results(results, out)
    if json:
        print(results.to_json(), end="")
    else:
        _show(results, out, console)


@app.command()
def attack(
    image: Annotated[Path, typer.Argument(help="DICOM, NIfTI, PNG or JPEG file.")],
    model: Annotated[str, typer.Option(help="Registered model or model folder.")],
    out: Annotated[Path, typer.Option(help="File to write: same format as IMAGE; PNG for JPEG.")],
    eps: Annotated[
        str, typer.Option(help="Budget in stored values of IMAGE, or in per cent of what the model sees, as in 1%.")
    ] = "1%",
    attack: Annotated[str, typer.Option(help="Name of the attack: pgd or noise.")] = "pgd",
    norm: Annotated[str, typer.Option(help="linf or l2.")] = "linf",
    steps: Annotated[int, typer.Option(min=1, help="Steps of the attack.")] = 40,
    target: Annotated[str | None, typer.Option(help="Label to reach; without it the decision is flipped.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, gpu or a torch device.")] = "cpu",
) -> None:
    """Attack one file: write a file of the same kind, read it back and score it again."""
    from rich.markup import escape

    console = open_console()
    with console.status(escape(f"attacking {one_line(image.name)}")):
        from art_medical.evaluation.single_image import attack_file

        outcome = attack_file(
            image,
            out,
            model=model,
            attack=attack,
            norm=norm,
            eps=eps,
            max_iter=steps,
            target=target,
            seed=seed,
            device=device,
        )
    for line in outcome.lines():
        console.print(one_line(line), soft_wrap=True)
    if not outcome.success:
        raise typer.Exit(6)


# -- output ------------------------------------------------------------------------------------------------------------


def _writable(out: Path) -> None:
    """Find out before the work, not after it, that the results have nowhere to go."""
    try:
        parent = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    except OSError as error:
        raise ArtMedicalError(f"cannot write results to {out}: {error.strerror}") from error
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ArtMedicalError(f"cannot write results to {out}: {parent} is no folder that may be written")


def _write_results(results: Results, out: Path) -> None:
    from art_medical.evaluation.report import render_report
    from art_medical.evaluation.store import write_atomically

    write_atomically(out / "results.json", results.to_json().encode())
    render_report(results, out / "report.html")


def _show(results: Results, out: Path, console: Console) -> None:
    from rich.table import Table

    table = Table(
        title=f"{results.study.name}, n = {results.cells[0]['n']}", title_justify="left", box=None, pad_edge=False
    )
    for heading in ("model", "attack", "budget", "accuracy", "AUROC", "sensitivity", "specificity", "attack success"):
        table.add_column(heading)
    for cell in results.cells:
        metrics = cell["metrics"]
        figures = [figure(metrics.get(name)) for name in ("accuracy", "auroc", "sensitivity", "specificity")]
        success = figure(metrics.get("attack_success_rate"))
        table.add_row(
            cell["model"], cell["attack"], cell["budget"]["text"] if cell["budget"] else "", *figures, success
        )
    console.print(table)
    for check in results.checks:
        if not check["passed"]:
            console.print(f"check not passed: {check['name']}: {check['detail']}", soft_wrap=True)
    console.print(one_line(f"wrote {out / 'report.html'} and {out / 'results.json'}"), soft_wrap=True)


def _complain(message: str, code: int) -> NoReturn:
    text = one_line(" ".join(message.split()))
    print(f"art-medical: {text if len(text) <= MOST_WORDS else text[:MOST_WORDS] + ' ...'}", file=sys.stderr)
    raise SystemExit(code)


def main() -> None:
    """Entry point: errors of the package and of the command line become one line and their exit code."""
    warnings.simplefilter("ignore")
    try:
        code = app(prog_name="art-medical", standalone_mode=False)
    except ArtMedicalError as error:
        _complain(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except OSError as error:  # a name that is too long, a disk that is full: whatever no reader or writer foresaw
        _complain(f"{error.strerror or error}: {error.filename}", 1)
    except (MemoryError, RuntimeError) as error:
        # torch says it with a RuntimeError.
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        _complain("out of memory; use fewer images (--limit) or a smaller batch_size", 1)
    except Exception as error:
        # Where typer keeps the class of its usage errors depends on its version.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        if not message():  # there were no arguments, and the help was printed
            raise SystemExit(2) from None
        _complain(str(message()).rstrip(".") + "; see art-medical --help", 2)
    if code == INTERRUPTED:
        _complain("interrupted; finished cells are kept and the same command continues", INTERRUPTED)
    raise SystemExit(code or 0)


if __name__ == "__main__":
    main()
