# SPDX-License-Identifier: Apache-2.0
"""Run a study: load models and images, fill the cells that are not there yet, and put the results together."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from art_medical.attacks import attack_class
from art_medical.attacks.base import Record, StoredPixelAttack
from art_medical.attacks.patch import PatchAttack
from art_medical.errors import InputError, StudyError
from art_medical.estimators.classifier import MedicalClassifier
from art_medical.evaluation.adequacy import cell_evidence, study_checks
from art_medical.evaluation.cells import UNDEFENDED, Cell, cell_id, plan, stored
from art_medical.evaluation.data_source import Source, data_hashes
from art_medical.evaluation.metrics import Predictions, summarise
from art_medical.evaluation.progress import Progress, Silent
from art_medical.evaluation.results import Results
from art_medical.evaluation.store import Arrays, Store
from art_medical.evaluation.study import AttackEntry, Study
from art_medical.evaluation.subjects import Subject, load_subjects
from art_medical.images.datasets import Dataset

_NORMS = {"linf": np.inf, "l2": 2}
_EXEMPLARS = 4


def evaluate(
    study: Study,
    *,
    data: Path | None = None,
    store: Store | None = None,
    limit: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Results:
    """Run a study.

    :param study: What to measure.
    :param data: Folder or file of the images, for studies on files.
    :param store: Where finished cells are kept and looked up; without it nothing is written.
    :param limit: At most so many test images, spread evenly.
    :param device: ``cpu``, ``gpu`` or a torch device.
    :raises ArtMedicalError: If a model, an image or the study cannot be used; cells that were finished stay in
        ``store``.
    """
    reporter = progress or Silent()
    subjects = load_subjects(study, device)
    _check_attacks(study, subjects)
    records: list[dict[str, Any]] = []
    arrays: dict[str, Arrays] = {}
    images: dict[str, Any] = {}
    for ref in study.models:
        source = Source(study, data, subjects[ref], reporter)
        test = source.read(study.data.split, limit)
        run = _ModelRun(study, subjects, ref, source, test, store, reporter)
        images[ref] = run.data
        for record, found in run.cells():
            records.append(record)
            arrays[record["id"]] = found
    return Results(
        study=study,
        cells=tuple(records),
        checks=tuple(study_checks(records)),
        provenance=_provenance(subjects, images),
        arrays=arrays,
    )


class _ModelRun:
    """All cells of one model on one set of test images."""

    def __init__(
        self,
        study: Study,
        subjects: dict[str, Subject],
        ref: str,
        source: Source,
        test: Dataset,
        store: Store | None,
        progress: Progress,
    ) -> None:
        self.study, self.subjects, self.victim = study, subjects, subjects[ref]
        self.source, self.test, self.store, self.progress = source, test, store, progress
        self.data = data_hashes(test)
        self.before: Predictions | None = None
        self.patches: dict[tuple[str, int], PatchAttack] = {}

    def cells(self) -> Iterator[tuple[dict[str, Any], Arrays]]:
        """Records and per-sample arrays, the clean cell first."""
        for cell in plan(self.study, self.victim.ref, self.victim.estimator.domain):
            surrogate = self._surrogate(cell)
            key = cell_id(
                cell,
                model=self.victim.hashes,
                data=self.data,
                surrogate=None if surrogate is None else surrogate.hashes,
            )
            kept = self.store.read(key) if self.store is not None else None
            if kept is None:
                kept = self._measure(key, cell, surrogate or self.victim)
                if self.store is not None:
                    self.store.write(key, *kept)
            record, arrays = kept
            if cell.entry is None:
                self.before = self._predictions(arrays["logits"])
            # Names may change without changing what was measured.
            yield {**record, "model": cell.model, "attack": cell.attack, **self._attacker(cell)}, arrays

    def _attacker(self, cell: Cell) -> dict[str, Any]:
        name = None if cell.entry is None else cell.entry.threat_model
        return {"threat_model": name, "knowledge": None if name is None else self.study.threat_models[name].knowledge}

    def _surrogate(self, cell: Cell) -> Subject | None:
        entry = cell.entry
        name = None if entry is None else self.study.threat_models[entry.threat_model].surrogate_of(self.victim.ref)
        if name is None:
            return None
        surrogate = self.subjects[name]
        self.victim.check_surrogate(surrogate)
        return surrogate

    def _measure(self, key: str, cell: Cell, attacked_model: Subject) -> tuple[dict[str, Any], Arrays]:
        test, batch_size = self.test, self.study.batch_size
        attacked, record, settings, evidence = test.x, None, None, None
        if cell.entry is None:
            self.progress.begin(f"{cell.model}: clean", len(test))
        else:
            attack = self._attack(cell, attacked_model.estimator)
            self.progress.begin(f"{cell.model}: {_title(cell)}", len(test))
            attacked, record = _generate(attack, test, batch_size, self.progress)
            settings = {"attack": cell.entry.attack, **_settings(attack)}
            evidence = cell_evidence(record, attacked, attack.domain, cell.budget, quantise=attack.quantise)
        logits = self.victim.estimator.predict_logits(attacked, batch_size)
        metrics = summarise(self.victim.card.head, self._predictions(logits), self.before, cell.seed)
        content = {
            "id": key,
            "model": cell.model,
            "data": test.name,
            "defence": UNDEFENDED,
            "attack": cell.attack,
            "budget": _budget(cell, self.victim.estimator),
            "n": len(test),
            "seed": cell.seed,
            "metrics": {name: estimate.to_json() for name, estimate in metrics.items()},
            **self._attacker(cell),
            "settings": settings,
            "evidence": evidence,
        }
        return content, _per_sample(test, attacked, logits, record)

    def _attack(self, cell: Cell, estimator: MedicalClassifier) -> StoredPixelAttack:
        """The attack of a cell; a patch is made from training images once for each seed."""
        entry = cell.entry
        assert entry is not None
        if (entry.label, cell.seed) in self.patches:
            return self.patches[entry.label, cell.seed]
        attack = _build(cell, entry, estimator)
        if isinstance(attack, PatchAttack):
            train = self.source.read("train", entry.fit_images)
            self.progress.begin(f"{cell.model}: making {entry.label}", len(train) * attack.passes)
            attack.fit(train.x, train.y, report=self.progress.advance)
            self.patches[entry.label, cell.seed] = attack
        return attack

    def _predictions(self, logits: NDArray[np.float32]) -> Predictions:
        head = self.victim.card.head
        return Predictions(
            probabilities=head.probabilities(logits),
            decisions=head.decision_logits(torch.from_numpy(logits)).argmax(1).numpy().astype(np.int64),
            truth=head.encode(self.test.y).argmax(1).astype(np.int64),
            groups=self.test.groups,
        )


# -- one cell ----------------------------------------------------------------------------------------------------------


def _build(cell: Cell, entry: AttackEntry, estimator: MedicalClassifier) -> StoredPixelAttack:
    arguments: dict[str, Any] = {**entry.options, "seed": cell.seed}
    if cell.budget is not None:
        arguments |= {"norm": _NORMS[cell.budget.norm], "eps": cell.budget.eps}
        if entry.eps_step is not None:
            arguments["eps_step"] = stored(estimator.domain, entry, entry.eps_step)
    kind = attack_class(entry.attack)
    try:
        return kind(estimator, **arguments)
    except TypeError as error:
        raise StudyError(f"attack {entry.label!r}: {kind.__name__} refused its options: {error}") from error
    except InputError as error:
        raise StudyError(f"attack {entry.label!r}: {error}") from error


def _check_attacks(study: Study, subjects: dict[str, Subject]) -> None:
    """Build every attack once, so that a wrong option is found before the work and not in the middle of it."""
    for ref in study.models:
        for cell in plan(study, ref, subjects[ref].estimator.domain):
            if cell.entry is not None:
                _build(cell, cell.entry, subjects[ref].estimator)


def _generate(
    attack: StoredPixelAttack, test: Dataset, batch_size: int, progress: Progress
) -> tuple[NDArray[np.float32], Record]:
    """Attacked images, batch by batch for the progress bar, and the record of how they came to be."""
    attacked, records = np.empty_like(test.x), []
    attack.set_params(batch_size=batch_size)
    for start in range(0, len(test), batch_size):
        rows = slice(start, start + batch_size)
        attacked[rows] = attack.generate(test.x[rows], test.y[rows], ids=test.ids[rows])
        assert attack.record is not None
        records.append(attack.record)
        progress.advance(len(test.ids[rows]))
    return attacked, Record.join(records)


def _settings(attack: StoredPixelAttack) -> dict[str, Any]:
    names = [name for name in attack.attack_params if name != "verbose"]
    return {name: _plain(getattr(attack, name)) for name in names}


def _per_sample(
    test: Dataset, attacked: NDArray[np.float32], logits: NDArray[np.float32], record: Record | None
) -> Arrays:
    shown = _exemplars(test)
    arrays: Arrays = {
        "ids": np.array(test.ids),
        "groups": test.groups,
        "truth": test.y,
        "logits": logits,
        "exemplars": shown,
        "exemplar_clean": test.x[shown],
        "exemplar_attacked": attacked[shown],
    }
    if record is not None:
        arrays |= record.per_sample()
    return arrays


def _exemplars(test: Dataset) -> NDArray[np.int64]:
    """The first images of each label in turn, chosen before anything is known about them."""
    labels = test.y if test.y.ndim == 1 else test.y.max(1)
    queues = [list(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    picked = [queue[i] for i in range(_EXEMPLARS) for queue in queues if i < len(queue)]
    return np.array(sorted(picked[:_EXEMPLARS]), dtype=np.int64)


def _budget(cell: Cell, estimator: MedicalClassifier) -> dict[str, Any] | None:
    if cell.budget is None:
        return None
    budget = cell.budget
    domain = estimator.domain
    text = domain.describe(budget.eps) if budget.norm == "linf" else domain.amount(budget.eps)
    return {"norm": budget.norm, "eps": budget.eps, "unit": budget.unit, "text": text}


def _title(cell: Cell) -> str:
    return cell.attack if cell.budget is None else f"{cell.attack}, eps {cell.budget.eps:g}"


def _plain(value: Any) -> Any:
    """A parameter as JSON: infinity and tuples have no number and no array there."""
    if isinstance(value, float) and not np.isfinite(value):
        return "inf" if value > 0 else "-inf"
    if isinstance(value, np.generic):
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def _provenance(subjects: dict[str, Subject], images: dict[str, Any]) -> dict[str, Any]:
    import art_medical

    packages = ("adversarial-robustness-toolbox", "torch", "monai", "numpy", "scipy", "pydicom")
    return {
        "versions": {
            "art-medical": art_medical.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "platform": f"{platform.system()} {platform.machine()}",
        # Where it ran, which is the processor where the asked-for device does not exist.
        "device": str(next(iter(subjects.values())).estimator.device),
        "models": {
            ref: subject.hashes
            | {"version": subject.card.version, "card": subject.card.model_dump(mode="json", by_alias=True)}
            for ref, subject in subjects.items()
        },
        "data": images,
    }
