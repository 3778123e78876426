# SPDX-License-Identifier: Apache-2.0
"""The commands ``art-medical zoo ...``: list, show, fetch, verify, push, train and score models."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from art_medical.console import Bars, figure, one_line, open_console
from art_medical.errors import InputError, ModelError, PluginWarning, UnpinnedError

if TYPE_CHECKING:
    from art_medical.evaluation.progress import Progress
    from art_medical.zoo.verify import Verdict

zoo_app = typer.Typer(help="The model zoo.", no_args_is_help=True)

Ref = Annotated[str, typer.Argument(help="Registered model or model folder.")]
Endpoint = Annotated[str | None, typer.Option(help="Another Hub than the public one, by its URL.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@zoo_app.command("list")
def zoo_list(
    pattern: Annotated[str, typer.Argument(help="Shell pattern, for instance 'cxr-*'.")] = "*",
    task: Annotated[str | None, typer.Option(help="Only tasks that contain this text, for instance binary.")] = None,
    modality: Annotated[str | None, typer.Option(help="Only modalities that contain this text.")] = None,
    as_json: Json = False,
) -> None:
    """List the registered models, those of other packages among them."""
    from rich.table import Table

    from art_medical.zoo.registry import list_models

    with _plugins_told():
        rows = [_row(name) for name in list_models(pattern, task=task, modality=modality)]
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "modality", "task", "network", "parameters", "test AUROC", "weights"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "parameters" else "left")
    for row in rows:
        table.add_row(
            row["name"],
            row["modality"],
            row["task"],
            row["architecture"],
            f"{row['parameters']:,}",
            figure(row["auroc"]),
            "installed" if row["installed"] else "not installed",
        )
    open_console().print(table)


def _row(name: str) -> dict[str, Any]:
    from art_medical.zoo.registry import find_card
    from art_medical.zoo.summary import summarise
    from art_medical.zoo.verify import cached_files

    card, folders = find_card(name)
    installed = any((folder / card.weights).is_file() for folder in folders)
    if not installed and card.hub is not None:
        try:
            installed = cached_files(card) is not None
        except ModelError:  # what is wrong with it is for fetch and verify to say
            installed = False
    summary = summarise(card)
    auroc = None if summary.auroc is None else summary.auroc.model_dump(include={"value", "low", "high"})
    return {**asdict(summary), "auroc": auroc, "installed": installed}


@zoo_app.command("show")
def zoo_show(name: Ref) -> None:
    """Print the card of a model as JSON."""
    from art_medical.zoo.registry import find_card

    with _plugins_told():
        card = find_card(name)[0]
    print(card.to_json(), end="")


@zoo_app.command("fetch")
def zoo_fetch(
    refs: Annotated[
        list[str] | None, typer.Argument(metavar="REF...", help="Registered models or hf://owner/repo@commit.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every registered model.")] = False,
    to: Annotated[
        Path | None, typer.Option(help="Copy the models into this folder, for ART_MEDICAL_ZOO on another machine.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Take what is on this machine, ask no server.")] = False,
    allow_unpinned: Annotated[
        bool, typer.Option("--allow-unpinned", help="Take a branch, a tag or a file that no card has the hash of.")
    ] = False,
    endpoint: Endpoint = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch and write again what is there.")] = False,
) -> None:
    """Download models and check every file; with --to, for use without a network."""
    from art_medical.zoo.registry import list_models

    if everything == bool(refs):
        raise typer.BadParameter("name the models to fetch, or give --all")
    with _plugins_told():
        wanted = list_models() if everything else list(refs or ())
    console = open_console()
    failed = []
    for ref in wanted:
        try:
            folder = _fetch(ref, to, offline or None, allow_unpinned, endpoint, force)
        except (ModelError, OSError) as error:
            # Of everything, what can be had is fetched first; a model that nobody has pinned was not asked for by name.
            if not everything:
                raise
            if not isinstance(error, UnpinnedError):
                failed.append(ref)
            console.print(one_line(f"{ref}: not fetched: {error}"), soft_wrap=True)
        else:
            console.print(one_line(f"{ref}: {folder}"), soft_wrap=True)
    if to is not None:
        console.print(one_line(f"to use them: ART_MEDICAL_ZOO={to.absolute()}"), soft_wrap=True)
    if failed:
        raise ModelError(f"{len(failed)} of {len(wanted)} models could not be fetched, for instance {failed[0]}")


def _fetch(
    ref: str, to: Path | None, offline: bool | None, allow_unpinned: bool, endpoint: str | None, force: bool
) -> Path:
    """Folder in which the files of one model are, all of them checked."""
    from art_medical.zoo.hub import fetch, fetch_to

    if to is None:
        return fetch(ref, offline=offline, allow_unpinned=allow_unpinned, endpoint=endpoint, force=force).folder
    return fetch_to([ref], to, offline=offline, allow_unpinned=allow_unpinned, endpoint=endpoint, force=force)[0]


@zoo_app.command("verify")
def zoo_verify(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="Registered models or model folders.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every registered model.")] = False,
    key: Annotated[
        list[Path] | None, typer.Option(help="Public key (PEM) that the models must be signed with; may be repeated.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Weights that are not installed are an error, unless a Hub has them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare every file of models with their cards; of safetensors, only the header is read."""
    from art_medical.zoo.registry import list_models

    if everything == bool(models):
        raise typer.BadParameter("name the models to verify, or give --all")
    keys = [_read_key(path) for path in key or ()]
    with _plugins_told(), Bars(open_console(stderr=True)) as progress:
        wanted = list_models() if everything else list(models or ())
        verdicts = _verdicts(wanted, keys, progress)
    if as_json:
        print(json.dumps([verdict.to_dict() for verdict in verdicts], indent=1))  # names of files may not be Unicode
    else:
        _show_verdicts(verdicts)
    accepted = {"verified"}
    if everything:
        accepted |= {"not fetched"} if strict else {"not fetched", "not installed"}
    bad = [f"{verdict.ref} ({verdict.state})" for verdict in verdicts if verdict.state not in accepted]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ModelError(f"{len(bad)} of {len(verdicts)} models are not verified: {', '.join(bad[:3])}{more}")


def _verdicts(wanted: list[str], keys: list[bytes], progress: Progress) -> list[Verdict]:
    from art_medical.zoo.verify import verify

    progress.begin("verifying models", len(wanted))
    verdicts = []
    for ref in wanted:
        verdicts.append(verify(ref, trusted_keys=keys))
        progress.advance(1)
    return verdicts


def _show_verdicts(verdicts: list[Verdict]) -> None:
    console = open_console()
    for verdict in verdicts:
        console.print(one_line(f"{verdict.ref}: {verdict.state}"), soft_wrap=True)
        for finding in verdict.findings:
            text = f"  {finding.severity}: {finding.file}: {finding.message}"
            console.print(one_line(text), soft_wrap=True)


def _read_key(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the key {path}: {error.strerror}") from error


@zoo_app.command("push")
def zoo_push(
    folder: Annotated[Path, typer.Argument(help="Model folder.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/REPO", help="Repository on the Hub; created if need be.")],
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    tag: Annotated[str | None, typer.Option(help="Tag for the new commit; by default the version on the card.")] = None,
    sign: Annotated[Path | None, typer.Option(help="Private key (PEM) to sign what is published with.")] = None,
    endpoint: Endpoint = None,
) -> None:
    """Verify and publish a model folder, and print the pinned reference to load it by."""
    key = None if sign is None else _read_key(sign)
    password = None
    if key is not None and b"ENCRYPTED" in key:
        password = typer.prompt(f"password of {one_line(str(sign))}", hide_input=True, err=True).encode()
    from art_medical.zoo.push import push

    pushed = push(folder, repo, endpoint=endpoint, private=private, tag=tag, sign_key=key, sign_password=password)
    print(pushed.reference)


@zoo_app.command("train")
def zoo_train(
    folder: Annotated[
        Path, typer.Argument(help="Model folder with a recipe.yaml; weights and card are written there.")
    ],
    data: Annotated[Path, typer.Option(help="Folder that holds the data sets.")],
    work: Annotated[Path | None, typer.Option(help="Checkpoints; by default checkpoints/ in the folder.")] = None,
    device: Annotated[str, typer.Option(help="cpu, gpu or a torch device.")] = "cpu",
) -> None:
    """Train a model from its recipe. A cut training continues after its last whole epoch."""
    console = open_console()
    with console.status("loading"):
        from art_medical.training.recipe import read_recipe
        from art_medical.training.run import train

        recipe = read_recipe(folder)
    train(recipe, folder, data, work or folder / "checkpoints", console, device=device)


@zoo_app.command("score")
def zoo_score(
    folder: Annotated[Path, typer.Argument(help="Model folder, whose card.json and README.md are rewritten.")],
    data: Annotated[Path | None, typer.Option(help="Folder with labels.csv and images/, or an npz file.")] = None,
    device: Annotated[str, typer.Option(help="cpu, gpu or a torch device.")] = "cpu",
) -> None:
    """Measure a model on unattacked test images and write the scores into its card."""
    console = open_console()
    with Bars(console) as progress:
        from art_medical.evaluation.scorecard import score

        card = score(folder, data, device=device, progress=progress)
    for entry in card.clean_eval:
        for found in entry.scores:
            console.print(f"{entry.dataset} {entry.split}: {found.metric} {figure(found.model_dump())}")


@contextmanager
def _plugins_told() -> Iterator[None]:
    """Say on standard error, once each, which plug-ins of other packages are left out and why."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", PluginWarning)
        try:
            yield
        finally:
            for text in dict.fromkeys(str(warning.message) for warning in caught):
                print(f"art-medical: {one_line(text)}", file=sys.stderr)
