# SPDX-License-Identifier: Apache-2.0
"""Hostile models: each attack of the table is refused with its own error, and a canary proves that nothing ran."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import runpy
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml

from art_medical.errors import ArtMedicalError
from art_medical.zoo.registry import load
from art_medical.zoo.signature import verify_folder
from art_medical.zoo.verify import verify_model
from tests.hub.server import TOKEN
from tests.zoo.hostile import bundles, pickles
from tests.zoo.hostile.attacks import TABLE
from tests.zoo.hostile.canary import watching
from tests.zoo.hostile.signatures import signed
from tests.zoo.hostile.stage import WEIGHTS, Attack, Stage, state_dict, with_pickle

DOCS = Path(__file__).resolve().parents[2] / "docs"
ESCAPES = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the Hub's client waits between its attempts
    made = Stage(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Everything that loading, fetching, verifying and training import is imported, as in a process that works."""
    import monai.networks.nets  # noqa: F401

    made = Stage(tmp_path_factory.mktemp("warm"))
    hub = made.hub()
    load(made.publish(hub), endpoint=hub.endpoint, cache_dir=made.cache)
    load(made.put(state_dict(), "model.pt", "state_dict"))
    verify_model(made.folder)
    signature, _, public = signed(made)
    verify_folder(made.folder, signature, [public])
    made.close()


def refused(case: Attack, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> str:
    """The error of one case, after everything that must not have happened did not happen."""
    victim = case.make(stage)
    for name, value in stage.environment.items():
        monkeypatch.setenv(name, value)
    environment = dict(os.environ)
    port = stage.hubs[-1].port if stage.hubs else 0
    before = {path for path in stage.root.rglob("*") if not path.is_relative_to(stage.writable)}
    with watching(stage.writable, stage.secret, port) as watch, pytest.raises(ArtMedicalError) as caught:
        victim()
    assert watch.alarms == []
    assert not stage.canary.exists()
    assert dict(os.environ) == environment
    after = {path for path in stage.root.rglob("*") if not path.is_relative_to(stage.writable)}
    assert {path for path in after - before if "hub" not in path.name} == set()
    assert stage.secret.read_text(encoding="utf-8") == "the secret\n"
    assert type(caught.value) is case.error
    return str(caught.value)


MESSAGES: dict[str, str] = {}


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_an_attack_is_refused_and_nothing_runs(
    case: Attack, stage: Stage, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    message = refused(case, stage, monkeypatch)
    assert case.message in message
    assert ESCAPES.search(message) is None
    assert len(message) < 1200
    assert "the secret" not in message
    MESSAGES[case.name] = message


def test_every_attack_has_an_error_of_its_own() -> None:
    assert len(TABLE) >= 40
    assert len({case.name for case in TABLE}) == len(TABLE)
    assert all(case.source for case in TABLE)
    mistaken = [
        (case.name, other)
        for case in TABLE
        for other, message in MESSAGES.items()
        if other != case.name and case.message in message
    ]
    assert mistaken == []


# -- the canary is alive -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", pickles.PICKLES)
def test_plain_pickle_runs_the_payload_and_the_canary_sings(stage: Stage, name: str) -> None:
    content = pickles.PICKLES[name](stage)
    with watching(stage.writable, stage.secret) as watch:
        try:
            made = pickle.loads(content)
            if isinstance(made, logging.Handler):
                made.close()
        except (pickle.UnpicklingError, EOFError, ValueError):
            assert "breaks off" in name
    assert any(alarm.startswith("pickle.find_class") for alarm in watch.alarms)
    assert any(alarm.startswith(("os.system", "open to write")) for alarm in watch.alarms)
    assert stage.canary.exists()


def test_torch_without_weights_only_runs_the_payload(stage: Stage) -> None:
    path = stage.root / "model.pt"
    path.write_bytes(with_pickle(pickles.called("posix", "system", stage.shell)))
    with watching(stage.writable, stage.secret) as watch:
        torch.load(path, weights_only=False)
    assert any(alarm.startswith("os.system") for alarm in watch.alarms)
    assert stage.canary.exists()


@pytest.mark.parametrize("name", bundles.CONFIGURATIONS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_parser_of_monai_runs_the_payload(stage: Stage, name: str) -> None:
    from monai.bundle import ConfigParser

    parser = ConfigParser(bundles.CONFIGURATIONS[name](stage))
    parser.get_parsed_content("network_def", instantiate=False)  # imports what it needs
    stage.canary.unlink(missing_ok=True)
    # A network of 0 channels is none; the payload has run.
    with watching(stage.writable, stage.secret) as watch, suppress(Exception):
        ConfigParser(bundles.CONFIGURATIONS[name](stage)).get_parsed_content("network_def")
    assert any(alarm.startswith("os.system") for alarm in watch.alarms)
    assert stage.canary.exists()


def test_an_unsafe_yaml_loader_runs_the_payload(stage: Stage) -> None:
    with watching(stage.writable, stage.secret) as watch:
        yaml.unsafe_load(f"schema: !!python/object/apply:os.system [{stage.shell!r}]\n")
    assert any(alarm.startswith("os.system") for alarm in watch.alarms)
    assert stage.canary.exists()


@pytest.mark.parametrize(
    ("code", "event"),
    [
        ("exec('1')", "exec"),
        ("__import__('evil_module')", "compile"),
        ("__import__('os').putenv('CANARY', '1')", "os.putenv"),
        ("__import__('subprocess').run(['true'])", "subprocess.Popen"),
        ("open({secret!r}).close()", "open of the secret"),
        ("open({outside!r} + '/new', 'w').close()", "open to write"),
        ("__import__('os').remove({secret!r})", "os.remove"),
        ("__import__('pathlib').Path({outside!r}, 'x').mkdir()", "os.mkdir"),
        ("__import__('socket').create_connection(('127.0.0.1', 9), 1)", "socket.connect"),
        ("__import__('pickle').loads(b'cos\\ngetpid\\n)R.')", "pickle.find_class"),
    ],
)
def test_the_canary_hears_everything_else(stage: Stage, monkeypatch: pytest.MonkeyPatch, code: str, event: str) -> None:
    (stage.outside / "evil_module.py").write_text("")
    monkeypatch.syspath_prepend(stage.outside)
    expression = compile(code.format(secret=str(stage.secret), outside=str(stage.outside)), "<test>", "eval")
    with watching(stage.writable, stage.secret) as watch:
        try:
            eval(expression)
        except OSError:
            assert event == "socket.connect"
    assert any(alarm.startswith(event) for alarm in watch.alarms), watch.alarms


def test_a_model_that_is_what_it_says_passes_the_same_canary(stage: Stage) -> None:
    hub = stage.hub()
    ref = stage.publish(hub)
    with watching(stage.writable, stage.secret, hub.port) as watch:
        load(ref, endpoint=hub.endpoint, cache_dir=stage.cache)
        load(stage.folder)
        verify_model(stage.folder)
    assert watch.alarms == []


# -- what is not a refusal ---------------------------------------------------------------------------------------------


def test_only_named_files_are_ever_asked_for(stage: Stage) -> None:
    """Code in a repository beside a sound model is not even fetched."""
    hub = stage.hub()
    ref = stage.publish(hub, {"modeling.py": b"raise SystemExit", "config.json": b"{}", "../../evil.py": b"x"})
    load(ref, endpoint=hub.endpoint, cache_dir=stage.cache)
    assert {request.path.rpartition("/")[2] for request in hub.requests} == {"card.json", WEIGHTS}


def test_a_host_that_is_redirected_to_does_not_get_the_token(stage: Stage) -> None:
    """CVE-2018-18074, in whatever the Hub's client stands on."""
    from art_medical.zoo.hub import fetch

    hub = stage.hub()
    hub.redirect = True
    fetch(stage.publish(hub), endpoint=hub.endpoint, cache_dir=stage.cache, token=TOKEN)
    there = [request for request in hub.requests if request.path.startswith("/cdn/")]
    assert len(there) >= 1
    assert all("authorization" not in request.headers for request in there)
    assert any(request.headers.get("authorization") == f"Bearer {TOKEN}" for request in hub.requests)


def test_a_cache_that_somebody_else_filled_is_compared_once_with_an_honest_server(stage: Stage) -> None:
    """By the Hub's own names of the files, which follow from their content; the files are not sent again."""
    hub = stage.hub()
    ref = stage.publish(hub)
    load(ref, endpoint=hub.endpoint, cache_dir=stage.cache)
    shutil.rmtree(stage.cache.with_name("cache.art-medical"))  # as if another program had fetched the model
    hub.requests.clear()
    load(ref, endpoint=hub.endpoint, cache_dir=stage.cache, offline=True)
    assert hub.requests == []  # offline there is nobody to ask
    shutil.rmtree(stage.cache.with_name("cache.art-medical"))
    for _ in range(2):
        load(ref, endpoint=hub.endpoint, cache_dir=stage.cache)
    assert [(request.method, request.path.rpartition("/")[2]) for request in hub.requests] == [("HEAD", "card.json")]


def test_the_documented_table_is_current() -> None:
    current = runpy.run_path(str(DOCS / "hostile_models.py"))["text"]()
    assert (DOCS / "hostile-models.json").read_text(encoding="utf-8") == current, "run: python docs/hostile_models.py"
    assert len(json.loads(current)) == len(TABLE)
