# SPDX-License-Identifier: Apache-2.0
"""The command line: bad input is one line and an exit code and leaves nothing behind; output suits people and pipes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import nibabel as nib
import numpy as np
import pydicom
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from art_medical import __version__, cli
from art_medical.attacks.projected_gradient_descent import ProjectedGradientDescent
from art_medical.zoo import dsse
from art_medical.zoo.cards import read_card
from art_medical.zoo.model_card import model_card
from art_medical.zoo.registry import ZOO_VARIABLE
from tests.hub.server import TOKEN, LoopbackHub
from tests.zoo.models import biased, write_model

ROOT = Path(__file__).resolve().parents[1]
STUDY = """\
schema: art-medical/study@1
name: tiny
models: [phantom-hotelling]
data: {kind: phantom, n: 12}
threat_models:
  white box: {knowledge: white-box}
attacks:
  - {attack: pgd, label: PGD, threat_model: white box, norm: linf, eps: [2, 8], options: {max_iter: 3}}
"""


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, with contents."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """``run("zoo", "list")`` in this process and the folder of the test; its streams are files, as in a pipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(ZOO_VARIABLE, raising=False)

    def call(*arguments: object) -> Ended:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["art-medical", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert isinstance(left.value.code, int)
        printed = capfd.readouterr()
        return Ended(left.value.code, printed.out, printed.err)

    return call


@pytest.fixture
def refused(run: Run, tmp_path: Path) -> Callable[..., str]:
    """Run a command that must fail: one line on standard error, nothing on the other, no file touched."""

    def call(code: int, *arguments: object) -> str:
        before = tree(tmp_path)
        ended = run(*arguments)
        assert ended.code == code, ended
        assert ended.out == ""
        assert re.fullmatch(r"art-medical: [^\n]+\n", ended.err), ended.err
        assert "Traceback" not in ended.err
        assert "\x1b" not in ended.err
        assert len(ended.err) < 1100
        assert tree(tmp_path) == before
        return ended.err

    return call


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A linear observer of four 8-bit pixels that says yes to nearly everything."""
    return write_model(tmp_path / "models" / "tiny", prepare=biased(0.0))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.array([[10, 200], [90, 60]], np.uint8)).save(path)
    return path


def child(*arguments: object, **environment: str) -> Ended:
    """The command in a process of its own."""
    started = subprocess.run(
        [sys.executable, "-m", "art_medical.cli", *map(str, arguments)],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return Ended(started.returncode, started.stdout, started.stderr)


# -- what works --------------------------------------------------------------------------------------------------------


def test_evaluate_writes_results_and_a_report(run: Run, study: Path, tmp_path: Path) -> None:
    ended = run("evaluate", study, "--out", "report")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0].rstrip() == "tiny, n = 12"
    assert [line.split()[:2] for line in lines[2:5]] == [
        ["phantom-hotelling", name] for name in ("clean", "PGD", "PGD")
    ]
    assert lines[-1] == "wrote report/report.html and report/results.json"
    assert "\x1b" not in ended.out
    results = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
    assert [cell["n"] for cell in results["cells"]] == [12, 12, 12]
    assert (
        (tmp_path / "report" / "report.html").read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    )
    assert len(list((tmp_path / "report" / "cells").glob("*.json"))) == 3


def test_json_prints_the_results_and_nothing_else(run: Run, study: Path, tmp_path: Path) -> None:
    ended = run("evaluate", study, "--json", "--limit", 6)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == (tmp_path / "art-medical-report" / "results.json").read_text(encoding="utf-8")
    assert {cell["n"] for cell in json.loads(ended.out)["cells"]} == {6}


def test_model_replaces_those_of_the_study(run: Run, study: Path) -> None:
    ended = run("evaluate", study, "--json", "--model", "phantom-nodule", "--limit", 2)
    assert {cell["model"] for cell in json.loads(ended.out)["cells"]} == {"phantom-nodule"}


def test_a_second_run_is_quick_and_equal(run: Run, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run("evaluate", study, "--json")
    monkeypatch.setattr(ProjectedGradientDescent, "generate", lambda *_, **__: pytest.fail("attacked again"))
    assert run("evaluate", study, "--json") == first


def test_attack_tells_before_and_after(run: Run, tiny: Path, picture: Path) -> None:
    ended = run("attack", picture, "--model", tiny, "--eps", "100%", "--out", "out.png")
    assert (ended.code, ended.err) == (0, "")
    before, after, budget, verdict = ended.out.splitlines()
    assert re.fullmatch(r"before: (yes|no) \(no \d\.\d{4}, yes \d\.\d{4}\)", before)
    assert after.startswith("after:  ")
    assert after[8:11] != before[8:11]
    assert budget.startswith("budget: 255 grey levels (1e+02 % of the range); largest change ")
    assert verdict == "the written file has the attacked decision: out.png"


def test_an_attack_that_fails_is_exit_code_6(run: Run, tmp_path: Path, picture: Path) -> None:
    model = write_model(tmp_path / "stubborn", prepare=biased(1e6))
    ended = run("attack", picture, "--model", model, "--eps", 1, "--steps", 1, "--out", "out.png")
    assert (ended.code, ended.err) == (6, "")
    assert ended.out.splitlines()[-1] == "the attack did NOT change the decision: out.png"
    assert (tmp_path / "out.png").is_file()


def test_zoo_list_and_show(run: Run) -> None:
    listed = run("zoo", "list", "phantom-*")
    assert (listed.code, listed.err) == (0, "")
    assert [line.split()[0] for line in listed.out.splitlines()] == ["model", "phantom-hotelling", "phantom-nodule"]
    assert all(line.rstrip().endswith("installed") for line in listed.out.splitlines()[1:])
    assert "binary: lumps only / nodule" in listed.out.splitlines()[1]
    shown = run("zoo", "show", "phantom-nodule")
    assert shown.code == 0
    assert shown.out == (ROOT / "zoo" / "phantom-nodule" / "card.json").read_text(encoding="utf-8")


def test_zoo_list_tells_what_is_not_installed(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ZOO_VARIABLE, str(tiny.parent))
    assert run("zoo", "list", "tiny").out.splitlines()[1].split()[-1] == "installed"
    (tiny / "model.safetensors").unlink()
    assert run("zoo", "list", "tiny").out.splitlines()[1].split()[-2:] == ["not", "installed"]


def test_zoo_list_as_json(run: Run) -> None:
    listed = run("zoo", "list", "--json", "--task", "LUMPS", "--modality", "phantom", "*-nodule")
    assert (listed.code, listed.err) == (0, "")
    (model,) = json.loads(listed.out)
    card = json.loads((ROOT / "zoo" / "phantom-nodule" / "card.json").read_text(encoding="utf-8"))
    auroc = next(score for score in card["clean_eval"][0]["scores"] if score["metric"] == "auroc")
    assert model == {
        "name": "phantom-nodule",
        "task": "binary: lumps only / nodule",
        "modality": "phantom",
        "data": card["data"]["name"],
        "licence": "Apache-2.0",
        "architecture": "ResNet",
        "parameters": 77513,
        "auroc": {key: auroc[key] for key in ("value", "low", "high")},
        "installed": True,
    }
    assert json.loads(run("zoo", "list", "--json", "--task", "nothing").out) == []


def test_zoo_verify_one_model_and_a_folder(run: Run, tiny: Path) -> None:
    ended = run("zoo", "verify", "phantom-hotelling", tiny)
    assert ended == (0, f"phantom-hotelling: verified\n{tiny}: verified\n", "")
    (tiny / "run me\n.sh").write_text("x")
    ended = run("zoo", "verify", "phantom-hotelling", tiny)
    assert ended.code == 4
    assert ended.out.splitlines() == [
        "phantom-hotelling: verified",
        f"{tiny}: failed",
        "  error: run me .sh: is a file that the card does not name; remove it",
    ]
    assert ended.err == f"art-medical: 1 of 2 models are not verified: {tiny} (failed)\n"
    printed = run("zoo", "verify", "--json", tiny)
    assert (printed.code, printed.err.count("\n")) == (4, 1)
    (verdict,) = json.loads(printed.out)
    assert (verdict["state"], verdict["findings"][0]["file"]) == ("failed", "run me\n.sh")


def test_zoo_verify_all(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Path) -> None:
    """What is not on this machine is told; with --strict it is an error, unless the Hub has it."""
    monkeypatch.setattr("art_medical.zoo.registry._own_zoo", lambda: tiny.parent)
    (tiny / "model.safetensors").unlink()
    published = write_model(tiny.parent / "published", hub={"repo": "owner/published", "revision": "0" * 40})
    (published / "model.safetensors").unlink()
    write_model(tiny.parent / "whole")
    told = "published: not fetched\ntiny: not installed\nwhole: verified\n"
    assert run("zoo", "verify", "--all") == (0, told, "")
    message = "art-medical: 1 of 3 models are not verified: tiny (not installed)\n"
    assert run("zoo", "verify", "--all", "--strict") == (4, told, message)
    message = "art-medical: 1 of 1 models are not verified: published (not fetched)\n"
    assert run("zoo", "verify", "published") == (4, "published: not fetched\n", message)


def test_zoo_verify_with_a_key(run: Run, tiny: Path, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub").write_bytes(public)
    ended = run("zoo", "verify", tiny, "--key", "key.pub")
    assert ended.code == 4
    assert "card.json: names no signature, so none of the trusted keys vouches for this model" in ended.out


def test_a_broken_plugin_is_told_and_hides_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "site" / "broken-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[art_medical.models]\nmodels = not_there:MODELS\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for command in (("list",), ("verify", "phantom-hotelling")):
        ended = run("zoo", *command)
        assert ended.code == 0
        assert "phantom-hotelling" in ended.out
        assert ended.err == (
            "art-medical: plug-in 'models' of the package 'broken': ModuleNotFoundError: No module named 'not_there'; "
            "its models are left out\n"
        )


def test_zoo_fetch_for_a_machine_without_network(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verified copies in a folder, which is then a zoo of its own."""
    ended = run("zoo", "fetch", "phantom-hotelling", "--to", "copies", "--offline")
    assert (ended.code, ended.err) == (0, "")
    copy = tmp_path / "copies" / "phantom-hotelling"
    told = f"phantom-hotelling: copies/phantom-hotelling\nto use them: ART_MEDICAL_ZOO={tmp_path / 'copies'}\n"
    assert ended.out == told
    assert run("zoo", "fetch", "phantom-hotelling", "--to", "copies", "--offline").out == told
    monkeypatch.setenv(ZOO_VARIABLE, str(tmp_path / "copies"))
    monkeypatch.setattr("art_medical.zoo.registry._own_zoo", lambda: tmp_path / "nowhere")
    assert run("zoo", "verify", "--all", "--strict").out == "phantom-hotelling: verified\n"
    (copy / "model.safetensors").write_bytes(b"x")
    assert run("zoo", "verify", "--all").code == 4


def test_zoo_fetch_all_takes_what_can_be_had(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that nobody pinned is told and passed over; one that should be there and is not is an error."""
    monkeypatch.setattr("art_medical.zoo.registry._own_zoo", lambda: tiny.parent)
    loose = {"model.safetensors": {"sha256": None, "size": None}}
    unpinned = write_model(tiny.parent / "unpinned")
    (unpinned / "model.safetensors").unlink()
    card = json.loads((unpinned / "card.json").read_text())
    (unpinned / "card.json").write_text(
        json.dumps({**card, "files": loose, "hub": {"repo": "owner/unpinned", "revision": None}})
    )
    ended = run("zoo", "fetch", "--all", "--to", "copies", "--offline")
    assert (ended.code, ended.err) == (0, "")
    assert [line.split(":")[0] for line in ended.out.splitlines()] == ["tiny", "unpinned", "to use them"]
    assert "unpinned: not fetched: unpinned names no revision, whose files may change; " in ended.out
    (tiny / "model.safetensors").unlink()
    ended = run("zoo", "fetch", "--all", "--offline")
    assert ended.code == 4
    assert ended.err == "art-medical: 1 of 2 models could not be fetched, for instance tiny\n"
    ended = run("zoo", "fetch", "unpinned", "--offline")
    assert (ended.code, ended.out) == (4, "")


@pytest.mark.network
def test_zoo_push_and_fetch(run: Run, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published to a Hub on this machine, signed, fetched by the printed reference, and verified with the key."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (tmp_path / "key.pub").write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with LoopbackHub(tmp_path / "hub") as hub:
        where = ("--endpoint", hub.endpoint)
        refused = run("zoo", "push", tiny, "owner/tiny", "--sign", "key.pem", *where)
        assert (refused.code, refused.out) == (4, "")  # there is no README.md
        card = json.loads((tiny / "card.json").read_text())
        signature = {"file": "model.sig", "key_sha256": dsse.key_fingerprint(key.public_key())}
        (tiny / "card.json").write_text(json.dumps({**card, "signature": signature}))
        (tiny / "README.md").write_text(model_card(read_card(tiny)), encoding="utf-8")
        pushed = run("zoo", "push", tiny, "owner/tiny", "--sign", "key.pem", *where)
        assert (pushed.code, pushed.err) == (0, "")
        reference = pushed.out.strip()
        assert re.fullmatch(r"hf://owner/tiny@[0-9a-f]{40}#[0-9a-f]{64}", reference)
        fetched = run("zoo", "fetch", reference, "--to", "copies", *where)
        assert (fetched.code, fetched.err) == (0, "")
        assert run("zoo", "verify", "copies/tiny", "--key", "key.pub") == (0, "copies/tiny: verified\n", "")
        assert run("zoo", "fetch", "hf://owner/tiny@main", *where).code == 4
        assert run("zoo", "fetch", "hf://owner/tiny@main", "--allow-unpinned", *where).code == 0
        gone = run("zoo", "fetch", "hf://owner/nothing@" + "0" * 40, *where)
        assert (gone.code, gone.out, gone.err.count("\n")) == (4, "", 1)


def test_a_check_that_failed_is_told(run: Run, tmp_path: Path, study: Path) -> None:
    """A model that does not look at the image gives no gradient."""

    def blind(network: Any) -> None:
        network.readout.weight.data.zero_()

    shape = {"shape": [1, 64, 64], "high": 4095, "unit": "stored value"}
    model = write_model(tmp_path / "blind", args={"shape": [1, 64, 64]}, input=shape, prepare=blind)
    ended = run("evaluate", study, "--model", model)
    assert (ended.code, ended.err) == (0, "")
    assert any(line.startswith("check not passed: gradients: not so for: ") for line in ended.out.splitlines())


def test_names_in_brackets_are_no_markup(run: Run, tmp_path: Path) -> None:
    """Labels, files and folders may be called like the markup of the terminal library."""
    labels = ["[/no]", "[red]yes :smile:"]
    head = {"kind": "one-logit", "labels": labels}
    model = write_model(tmp_path / "m", prepare=biased(0.0), head=head).rename(tmp_path / "[bold]m[")
    source = tmp_path / "[blink]x.png"
    Image.fromarray(np.array([[10, 200], [90, 60]], np.uint8)).save(source)
    ended = run("attack", source, "--model", model, "--eps", "100%", "--out", "[red]out[bold].png")
    assert (ended.code, ended.err) == (0, "")
    assert all(label in ended.out for label in labels)
    assert ended.out.endswith(": [red]out[bold].png\n")


def test_terminal_codes_in_names_are_not_obeyed(refused: Callable[..., str]) -> None:
    assert "unknown model '\\x1b[31mevil'" in refused(4, "zoo", "show", "\x1b[31mevil")
    message = refused(3, "attack", "\x1b[31mevil\nname.png", "--model", "phantom-nodule", "--out", "out.png")
    assert "?[31mevil name.png is missing" in message


def test_version_and_help(run: Run) -> None:
    assert run("--version") == (0, f"art-medical {__version__}\n", "")
    zoo = [("zoo", name) for name in ("list", "show", "fetch", "verify", "push", "score")]
    for command in ((), ("evaluate",), ("attack",), ("zoo",), *zoo):
        ended = run(*command, "--help")
        assert (ended.code, ended.err) == (0, "")
        assert "Usage: art-medical" in ended.out


def test_help_needs_nothing_heavy() -> None:
    """Each screen of help in a fresh process: no framework is imported for it."""
    code = """
import sys
from art_medical.cli import main
for arguments in (["--help"], ["evaluate", "--help"], ["attack", "--help"], ["zoo", "--help"]):
    sys.argv = ["art-medical", *arguments]
    try:
        main()
    except SystemExit as left:
        assert left.code == 0
heavy = {"torch", "monai", "art", "numpy", "scipy", "sklearn", "matplotlib", "nibabel", "pydicom", "yaml"}
sys.exit(", ".join(sorted(heavy & set(sys.modules))) or 0)
"""
    started = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (started.returncode, started.stderr) == (0, "")


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "--bogus"), "No such option: --bogus"),
        (("evaluate", "--limit", "1"), "Invalid value for '--limit'"),
        (("evaluate", "--limit", "many"), "Invalid value for '--limit'"),
        (("evaluate", "a", "b"), "unexpected extra argument"),
        (("attack",), "Missing argument"),
        (("attack", "a.png", "--out", "b.png"), "Missing option '--model'"),
        (("attack", "a.png", "--out", "b.png", "--model", "m", "--steps", "0"), "Invalid value for '--steps'"),
        (("attack", "a.png", "--out", "b.png", "--model", "m", "--seed", "-1"), "Invalid value for '--seed'"),
        (("frobnicate",), "No such command 'frobnicate'"),
        (("zoo", "burn"), "No such command 'burn'"),
        (("zoo", "fetch"), "name the models to fetch, or give --all"),
        (("zoo", "fetch", "m", "--all"), "name the models to fetch, or give --all"),
        (("zoo", "verify"), "name the models to verify, or give --all"),
        (("zoo", "verify", "m", "--all"), "name the models to verify, or give --all"),
        (("zoo", "push", "folder"), "Missing argument 'OWNER/REPO'"),
    ],
)
def test_wrong_usage(refused: Callable[..., str], arguments: tuple[str, ...], message: str) -> None:
    printed = refused(2, *arguments)
    assert message in printed
    assert printed.endswith("; see art-medical --help\n")


def test_no_arguments_print_the_help(run: Run) -> None:
    for command in ((), ("zoo",)):
        ended = run(*command)
        assert ended.code == 2
        assert "Usage: art-medical" in ended.out + ended.err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("eps: [2, 8]", "eps: [.nan]", "study.yaml, line 8: attacks.0.eps.0: Input should be a finite number"),
        ("attack: pgd", "attack: magic", "study.yaml, line 8: attacks.0: unknown attack 'magic'"),
        ("max_iter: 3", "max_iter: 3, depth: 2", "attack 'PGD': ProjectedGradientDescent refused its options"),
        ("name: tiny", "name: tiny\nname: tiny", "study.yaml, line 3: key 'name' is given twice"),
        ("name: tiny", "name: 2020-13-45", "study.yaml: not YAML: month must be in 1..12"),
        (STUDY, "", "study.yaml is empty"),
        (STUDY, "a: [", "not YAML"),
    ],
)
def test_wrong_studies(refused: Callable[..., str], study: Path, old: str, new: str, message: str) -> None:
    study.write_text(STUDY.replace(old, new))
    assert message in refused(5, "evaluate", study)


def test_missing_files(refused: Callable[..., str], study: Path) -> None:
    assert "cannot read the study gone.yaml: No such file or directory" in refused(5, "evaluate", "gone.yaml")
    assert "cannot read the study .: Is a directory" in refused(5, "evaluate", ".")
    assert "'tiny' runs on generated phantoms and takes no --data" in refused(3, "evaluate", study, "--data", "gone")
    attack = ("--model", "phantom-nodule", "--out", "out.png")
    assert "gone.png is missing: pass an image file" in refused(3, "attack", "gone.png", *attack)
    assert "is no regular file" in refused(3, "attack", ".", *attack)
    refused(1, "attack", "x" * 5000, *attack)
    refused(1, "evaluate", study, "--out", "x" * 5000)


@pytest.fixture
def on_files(study: Path, tiny: Path) -> Path:
    """A study on files with the model of four pixels."""
    study.write_text(STUDY.replace("phantom-hotelling", str(tiny)).replace("{kind: phantom, n: 12}", "{kind: npz}"))
    return study


def npz(path: Path, images: Any, labels: Any = (0, 1, 0, 1)) -> Path:
    np.savez(path, test_images=np.asarray(images), test_labels=np.asarray(labels))
    return path


GOOD = np.arange(16, dtype=np.uint8).reshape(4, 2, 2) * 15


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (GOOD.astype(np.float32) / 255, [0, 1, 0, 1], "expected uint8 images"),
        (np.full((4, 2, 2), np.nan), [0, 1, 0, 1], "expected uint8 images"),
        (GOOD.astype(np.uint16) * 257, [0, 1, 0, 1], "expected uint8 images"),
        (
            GOOD.repeat(3, axis=0).reshape(4, 2, 2, 3),
            [0, 1, 0, 1],
            "expected images of shape (N, 1, 2, 2), got (4, 3, 2",
        ),
        (GOOD[:, :1], [0, 1, 0, 1], "expected images of shape (N, 1, 2, 2), got (4, 1, 1, 2)"),
        (GOOD, [0, 1, 0, 2], "label 2 is outside the model's card: it has 2 classes (0 = no, 1 = yes)"),
        (GOOD, [0, 1, 0, -1], "label -1 is outside the model's card"),
        (GOOD, [0, 1, 0], "one row for each of 4 images"),
        (GOOD, [[0, 1, 0]] * 4, "cannot read labels of shape (4, 3)"),
    ],
)
def test_wrong_arrays(
    refused: Callable[..., str], on_files: Path, tmp_path: Path, images: Any, labels: Any, message: str
) -> None:
    assert message in refused(3, "evaluate", on_files, "--data", npz(tmp_path / "data.npz", images, labels))


def test_wrong_range_and_channels_in_a_folder(refused: Callable[..., str], on_files: Path, tmp_path: Path) -> None:
    on_files.write_text(on_files.read_text().replace("npz", "folder"))
    assert "say where they are with --data DIR" in refused(3, "evaluate", on_files)
    assert "no data at gone" in refused(3, "evaluate", on_files, "--data", "gone")
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    assert "a data folder needs labels.csv" in refused(3, "evaluate", on_files, "--data", folder)
    (folder / "labels.csv").write_text("file,label,split\na.png,0,test\n")
    for pixels, message in (
        (GOOD[0].astype(np.uint16), "data stores 0 to 65535 grey levels, the model takes 0 to 255 grey levels"),
        (np.stack([GOOD[0], GOOD[1], GOOD[2]], 2), "a.png has 3 channels, the model takes 1"),
    ):
        Image.fromarray(pixels).save(folder / "images" / "a.png")
        assert message in refused(3, "evaluate", on_files, "--data", folder)
    (folder / "images" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    assert "cannot read " in refused(3, "evaluate", on_files, "--data", folder)


def test_wrong_images(refused: Callable[..., str], run: Run, tiny: Path, tmp_path: Path) -> None:
    attack = ("--model", tiny, "--out", "out.dcm")
    whole = Path(pydicom.data.get_testdata_file("CT_small.dcm", download=False)).read_bytes()  # type: ignore[arg-type]
    for size in (0, 100, 200, 2000, len(whole) - 500, len(whole) - 1):
        (tmp_path / "cut.dcm").write_bytes(whole[:size])
        refused(3, "attack", "cut.dcm", *attack)
    (tmp_path / "note.txt").write_text("not an image")
    assert "note.txt is no image of a known kind" in refused(3, "attack", "note.txt", *attack)
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        voxels = np.ones((4, 4, 4), np.float32)
        voxels[1, 1, 1] = value
        nib.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / f"{name}.nii")
        assert "holds values that are not finite" in refused(
            3, "attack", f"{name}.nii", "--model", tiny, "--out", "out.nii"
        )
    nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)).to_filename(tmp_path / "deep.nii")
    assert "3 spatial axes, the model takes 2" in refused(4, "attack", "deep.nii", "--model", tiny, "--out", "out.nii")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (2, 2, 3), dtype=np.uint8)).save(tmp_path / "rgb.png")
    assert "rgb.png has 3 channels, the model takes 1" in refused(
        3, "attack", "rgb.png", "--model", tiny, "--out", "out.png"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--eps", "nan"), 3, "eps must be a positive number of stored values or a percentage"),
        (("--eps", "-1"), 3, "eps must be a positive number"),
        (("--target", "maybe"), 3, "label 'maybe' is outside the model's card: it has 2 classes (0 = no, 1 = yes)"),
        (("--attack", "magic"), 3, "attack 'magic' does not run on a single file"),
        (("--norm", "l1"), 3, "unknown norm 'l1'"),
        (("--model", "nope"), 4, "unknown model 'nope'"),
        (("--out", "out.jpg"), 3, ".jpg may lose what was attacked"),
        (("--out", "picture.png"), 3, "is the reference itself, which is never overwritten"),
        (("--out", "picture.png/out.png"), 3, "picture.png is no folder"),
        (("--out", "gone/out.png"), 3, "gone is no folder"),
    ],
)
def test_wrong_arguments_of_attack(
    refused: Callable[..., str], tiny: Path, picture: Path, arguments: tuple[str, str], code: int, message: str
) -> None:
    defaults = {"--model": str(tiny), "--out": "out.png", "--eps": "8"}
    options = [word for pair in {**defaults, arguments[0]: arguments[1]}.items() for word in pair]
    assert message in refused(code, "attack", picture, *options)


def test_wrong_models(refused: Callable[..., str], run: Run, on_files: Path, tiny: Path, tmp_path: Path) -> None:
    data = npz(tmp_path / "data.npz", GOOD)
    weights, card = tiny / "model.safetensors", tiny / "card.json"
    content, text = weights.read_bytes(), card.read_text()

    def both(message: str) -> None:
        """Evaluation and attack alike."""
        assert message in refused(4, "evaluate", on_files, "--data", data)
        Image.fromarray(GOOD[3]).save(tmp_path / "x.png")
        assert message in refused(4, "attack", "x.png", "--model", tiny, "--out", "out.png")

    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    both("refused before parsing")
    weights.write_bytes(content[:-4])
    both(f"has {len(content) - 4} bytes, the card says {len(content)}")
    weights.unlink()
    both("the weights of tiny are not installed")
    weights.symlink_to(data)
    both("is a symbolic link")
    weights.unlink()
    weights.write_bytes(content)
    card.write_text(text.replace('"version": "1.0.0"', '"version": "1.0.0", "version": "2"'))
    both("key 'version' is given twice")
    assert "key 'version' is given twice" in refused(4, "zoo", "show", tiny)
    card.write_text(text.replace("LinearObserver", "ViT"))
    both("network 'ViT' is not on the allow-list")
    card.write_text(text.replace('"num_parameters": 5', '"num_parameters": 6'))
    both("has 5 parameters, the card says 6")
    card.write_text(text[:-5])
    both("not JSON")
    card.write_text(text)
    assert run("evaluate", on_files, "--data", data).code == 0


def test_corrupt_weights_with_the_right_hash(refused: Callable[..., str], tiny: Path, picture: Path) -> None:
    import hashlib

    weights, card = tiny / "model.safetensors", json.loads((tiny / "card.json").read_text())
    for data in (b"\x80\x04pickle", weights.read_bytes()[:-2]):
        weights.write_bytes(data)
        card["files"] = {weights.name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}}
        (tiny / "card.json").write_text(json.dumps(card))
        assert "is no valid safetensors file" in refused(4, "attack", picture, "--model", tiny, "--out", "out.png")


def test_results_have_nowhere_to_go(refused: Callable[..., str], study: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in ("file", "file/report", "file/a/b"):
        assert f"cannot write results to {out}: " in refused(1, "evaluate", study, "--out", out)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="this user may write everywhere")
def test_a_folder_without_permission(refused: Callable[..., str], study: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "is no folder that may be written" in refused(1, "evaluate", study, "--out", "closed/report")


def test_a_full_disk_is_one_line(run: Run, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = run_and_complain(run, "evaluate", study)
    assert "cannot write art-medical-report/cells/" in message
    assert message.endswith(": No space left on device\n")
    assert [path for path in (tmp_path / "art-medical-report").rglob("*") if path.is_file()] == []


def run_and_complain(run: Run, *arguments: object) -> str:
    """A failure that may leave empty folders."""
    ended = run(*arguments)
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    return ended.err


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to")]
)
def test_no_memory_is_one_line(
    refused: Callable[..., str], study: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise error

    monkeypatch.setattr("art_medical.evaluation.runner.evaluate", fail)
    assert "out of memory; use fewer images" in refused(1, "evaluate", study)


def test_faults_of_the_package_are_not_hidden(run: Run, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is nobody's bad input keeps its traceback, which a report of the fault needs."""

    def fail(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError("a bug")

    monkeypatch.setattr("art_medical.evaluation.runner.evaluate", fail)
    monkeypatch.setattr(sys, "argv", ["art-medical", "evaluate", str(study)])
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main()


def test_the_interrupt_key(refused: Callable[..., str], study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("art_medical.evaluation.runner.evaluate", interrupt)
    assert "interrupted; finished cells are kept and the same command continues" in refused(130, "evaluate", study)


# -- processes and terminals -------------------------------------------------------------------------------------------


def test_failures_of_a_real_process() -> None:
    for code, arguments in ((2, ["evaluate", "--bogus"]), (4, ["zoo", "show", "nope"]), (5, ["evaluate", "gone.yaml"])):
        ended = child(*arguments, TERM="xterm-256color")
        assert (ended.code, ended.out, ended.err.count("\n")) == (code, "", 1)
        assert ended.err.startswith("art-medical: ")


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m art_medical.cli zoo show phantom-nodule | head -c 1"
    started = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in started.stderr


def in_a_terminal(*arguments: str, **environment: str) -> str:
    """What a terminal gets to see."""
    pty = pytest.importorskip("pty", reason="needs pseudo-terminals")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "art_medical.cli", *arguments], cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, **environment, "TERM": "xterm-256color"},
    ):  # fmt: skip
        os.close(theirs)
        seen = b""
        while True:
            try:
                chunk = os.read(ours, 4096)
            except OSError:  # Linux's way to say that the other side is closed
                break
            if not chunk:
                break
            seen += chunk
    os.close(ours)
    return seen.decode()


COLOUR = re.compile(r"\x1b\[[0-9;]*(?<=[\[;])(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")


@pytest.mark.slow
def test_no_color(monkeypatch: pytest.MonkeyPatch, study: Path, tmp_path: Path) -> None:
    """On a terminal: colours and progress bars, the latter gone at the end; without colours when asked."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    command = ("evaluate", str(study), "--out", str(tmp_path / "report"))
    coloured, plain = in_a_terminal(*command), in_a_terminal(*command, NO_COLOR="1")
    assert "phantom-hotelling: PGD, eps 2" in coloured
    assert COLOUR.search(coloured)
    assert "report.html" in plain
    assert not COLOUR.search(plain)
    assert not COLOUR.search(in_a_terminal("evaluate", "--help", NO_COLOR="1"))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_a_signal_ends_the_run_and_the_same_command_continues(tmp_path: Path) -> None:
    """SIGINT as soon as the first cell is there: exit code 130, one line; then the same bytes as without it."""
    path = tmp_path / "study.yaml"
    path.write_text(
        STUDY.replace("eps: [2, 8]", "eps: [2, 4, 8]").replace("max_iter: 3", "max_iter: 1500, confidence: .inf")
    )
    # A child of a background job would ignore the signal.
    code = """
import signal
from art_medical.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""
    command = [sys.executable, "-c", code, "evaluate", str(path), "--out"]
    cells = tmp_path / "cut" / "cells"
    with subprocess.Popen(
        [*command, str(tmp_path / "cut")], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not list(cells.glob("*.json")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert (out, err) == ("", "art-medical: interrupted; finished cells are kept and the same command continues\n")
    assert not (tmp_path / "cut" / "results.json").exists()
    assert not list(cells.glob("*.part"))
    assert 1 <= len(list(cells.glob("*.json"))) < 4
    for name in ("cut", "whole"):
        again = subprocess.run([*command, str(tmp_path / name)], cwd=ROOT, check=False, capture_output=True, text=True)
        assert (again.returncode, again.stderr) == (0, "")
    results = [(tmp_path / name / "results.json").read_bytes() for name in ("cut", "whole")]
    assert results[0] == results[1]
