# SPDX-License-Identifier: Apache-2.0
"""One file from stored pixel to decision and back: the written file, read by others, has the attacked decision."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from art_medical.cli import main
from art_medical.errors import ImageError, InputError, ModelError
from art_medical.evaluation.single_image import Outcome, attack_file, behind_file, displayed_span, parse_budget
from art_medical.images.files import read_image
from art_medical.zoo.registry import find_card, find_weights, load
from tests.zoo.models import RESNET, biased, write_model

ROOT = Path(__file__).resolve().parents[2]
STEPS = [{"kind": "normalise", "mean": [128], "std": [64]}]
Model = Callable[..., str]


@pytest.fixture
def grey_model(tmp_path: Path) -> Model:
    """A random network over 8-bit grey images of 64 x 64, biased so that one image is ``margin`` above the decision."""

    def make(near: Path | None = None, margin: float = 0.02, name: str = "model", **card: Any) -> str:
        dimensions = len(card.get("input", {}).get("shape", (1, 64, 64))) - 1
        arguments: dict[str, Any] = {
            "target": "ResNet",
            "args": {**RESNET, "spatial_dims": dimensions},
            **card,
            "input": {"shape": [1, 64, 64], "steps": STEPS, **card.get("input", {})},
        }
        folder = write_model(tmp_path / name, prepare=biased(0.0), **arguments)
        if near is not None:
            image = read_image(near)
            classifier = behind_file(load(folder), image)
            x = image.pixels[None, : classifier.input_shape[0]]
            logit = float(classifier.predict_logits(x)[0, 0])
            write_model(folder, prepare=biased(margin - logit), **arguments)
        return str(folder)

    return make


def write_dicom(path: Path, pixels: NDArray[Any], **header: Any) -> Path:
    """A grey object; ``header`` sets elements."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    for keyword, value in header.items():
        setattr(ds, keyword, value)
    ds.PixelData = pixels.astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    ds.save_as(path, enforce_file_format=True)
    return path


def noise(shape: tuple[int, ...], high: int, seed: int = 0) -> NDArray[np.int64]:
    """Smooth noise over nearly the whole range, so that nothing is clipped."""
    coarse = torch.rand((1, 1, *(max(2, n // 8) for n in shape)), generator=torch.Generator().manual_seed(seed))
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    fine = torch.nn.functional.interpolate(coarse, shape, mode=mode)[0, 0]
    return ((0.1 + 0.8 * fine) * high).round().long().numpy()


def in_a_new_process(files: dict[Path, str]) -> list[dict[str, Any]]:
    """Label and probabilities of files, each by a model, from a process that knows nothing of the attack."""
    code = """
import json, sys, warnings
warnings.simplefilter("ignore")
from art_medical import load
from art_medical.evaluation.single_image import behind_file
from art_medical.images.files import read_image
for path, model in json.load(sys.stdin).items():
    image = read_image(path)
    classifier = behind_file(load(model), image)
    x = image.pixels[None, :classifier.input_shape[0]]
    label = classifier.head.labels[classifier.predict(x).argmax()]
    print(json.dumps({"label": label, "p": classifier.predict_proba(x)[0].tolist()}))
"""
    child = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps({str(path): model for path, model in files.items()}),
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    return [json.loads(line) for line in child.stdout.splitlines()]


def independently(model: str, path: Path) -> float:
    """Logit of a DICOM file, with the standard's formulae in NumPy and pydicom's own pixels."""
    ds = pydicom.dcmread(path)
    x = ds.pixel_array.astype(np.float64) * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0))
    windows = ds.get("WindowCenter"), ds.get("WindowWidth")
    if windows[0] is not None:
        centre, width = (float(w if isinstance(w, float | int | str) else w[0]) for w in windows)
        grey = np.clip((x - (centre - 0.5)) / (width - 1) + 0.5, 0, 1) * 255
    else:
        grey = x / (2**ds.BitsStored - 1) * 255
    if ds.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    classifier = load(model)
    tensor = torch.from_numpy(grey[None, None].astype(np.float32))
    size = classifier.input_shape[1:]
    small = torch.nn.functional.interpolate(tensor, size, mode="bilinear", align_corners=False, antialias=True)
    return float(classifier.predict_logits(small.numpy())[0, 0])


# -- DICOM -------------------------------------------------------------------------------------------------------------


def check_written(model: str, source: Path, out: Path, outcome: Outcome) -> None:
    """What must hold of every written DICOM file, by other readers than ours."""
    before, after = pydicom.dcmread(source), pydicom.dcmread(out)
    assert after.SOPInstanceUID != before.SOPInstanceUID
    assert after.file_meta.MediaStorageSOPInstanceUID == after.SOPInstanceUID
    assert after.ImageType[0] == "DERIVED"
    assert "adversarial test image" in after.DerivationDescription
    change = after.pixel_array.astype(np.int64) - before.pixel_array.astype(np.int64)
    assert abs(change).max() == outcome.linf
    assert (change != 0).mean() == pytest.approx(outcome.changed)
    labels = list(outcome.after.probabilities)
    p = outcome.after.probabilities[labels[1]]
    assert independently(model, out) == pytest.approx(np.log(p / (1 - p)), abs=2e-3)
    p = outcome.before.probabilities[labels[1]]
    assert independently(model, source) == pytest.approx(np.log(p / (1 - p)), abs=2e-3)


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"WindowCenter": 1500, "WindowWidth": 2000},
        {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": [900, 1], "WindowWidth": [2500, 2]},
        {"RescaleSlope": "2", "RescaleIntercept": "-1024", "WindowCenter": 2000, "WindowWidth": 4000},
    ],
    ids=["plain", "inverted", "window", "inverted window", "rescale and window"],
)
def test_a_dicom_file_end_to_end(tmp_path: Path, grey_model: Model, header: dict[str, Any]) -> None:
    source = write_dicom(tmp_path / "in.dcm", noise((90, 70), 4095), **header)
    model, out = grey_model(near=source), tmp_path / "out.dcm"
    outcome = attack_file(source, out, model=model, eps="2%", max_iter=5)
    assert outcome.success
    assert (outcome.before.label, outcome.after.label) == ("yes", "no")
    budget = parse_budget("2%", read_image(source))
    assert 0 < outcome.linf <= budget
    check_written(model, source, out, outcome)


def test_monochrome1_is_the_negative(tmp_path: Path, grey_model: Model) -> None:
    """The same picture stored either way has the same probabilities, clean and (without random numbers) attacked."""
    pixels = noise((80, 80), 4095)
    positive = write_dicom(tmp_path / "2.dcm", pixels)
    negative = write_dicom(tmp_path / "1.dcm", 4095 - pixels, PhotometricInterpretation="MONOCHROME1")
    model = grey_model(near=positive)
    found = [attack_file(path, tmp_path / "out.dcm", model=model, max_iter=1).before for path in (positive, negative)]
    assert found[0].probabilities["yes"] == pytest.approx(found[1].probabilities["yes"], abs=1e-6)
    other = write_dicom(tmp_path / "x.dcm", 4095 - pixels)
    assert attack_file(other, tmp_path / "out.dcm", model=model, max_iter=1).before != found[0]


def test_padding_is_never_attacked(tmp_path: Path, grey_model: Model) -> None:
    pixels = noise((80, 80), 4095)
    pixels[:, :30] = 7
    source = write_dicom(tmp_path / "in.dcm", pixels, PixelPaddingValue=7)
    out = tmp_path / "out.dcm"
    attack_file(source, out, model=grey_model(near=source), eps="5%", max_iter=3)
    found = pydicom.dcmread(out).pixel_array
    assert (found[:, :30] == 7).all()
    assert (found[:, 30:] != pixels[:, 30:]).any()


@pytest.fixture
def radiograph(data_dir: Callable[[str], Path]) -> Path:
    return data_dir("dicom") / "RG1_J2KI.dcm"


@pytest.fixture
def radiograph_model(radiograph: Path, grey_model: Model) -> str:
    """``cxr-pneumonia`` where its weights are, else a random network."""
    try:
        card, folders = find_card("cxr-pneumonia")
        find_weights(card, folders)
    except ModelError:
        return grey_model(near=radiograph)
    return "cxr-pneumonia"


@pytest.mark.slow
def test_a_chest_radiograph_end_to_end(
    tmp_path: Path,
    radiograph: Path,
    radiograph_model: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command as a user types it, on a JPEG 2000 radiograph of 1955 x 1841; checked by pydicom and by dcmdump."""
    out = tmp_path / "attacked.dcm"
    command = ["art-medical", "attack", str(radiograph), "--model", radiograph_model, "--attack", "pgd"]
    monkeypatch.setattr(sys, "argv", [*command, "--eps", "1%", "--steps", "3", "--out", str(out)])
    with pytest.raises(SystemExit) as left:
        main()
    printed = capsys.readouterr()
    assert (left.value.code, printed.err) == (0, "")
    before, after, budget, verdict = printed.out.splitlines()
    labels = [line.split(":")[1].split("(")[0].strip() for line in (before, after)]
    assert labels[0] != labels[1]
    assert verdict == f"the written file has the attacked decision: {out}"
    assert budget.startswith("budget: 299.99 stored values")
    assert [answer["label"] for answer in in_a_new_process({out: radiograph_model})] == labels[1:]
    head = load(radiograph_model).head
    logits = [independently(radiograph_model, path) for path in (radiograph, out)]
    assert [head.labels[int(z > head.shifts[0])] for z in logits] == labels
    if shutil.which("dcmdump") is None:
        pytest.skip("dcmdump is not installed (Debian package dcmtk); everything else was checked")
    dump = subprocess.run(["dcmdump", "-q", str(out)], capture_output=True, text=True, check=True).stdout
    assert "=LittleEndianExplicit" in dump
    assert "[DERIVED" in dump
    assert "Synthetic adversarial test image. Not for clinical use." in dump
    assert "CS [MONOCHROME1]" in dump
    raw = tmp_path / "raw"
    raw.mkdir()
    subprocess.run(["dcmdump", "-q", "+W", str(raw), str(out)], capture_output=True, check=True)
    cells = np.frombuffer(max(raw.iterdir(), key=lambda p: p.stat().st_size).read_bytes(), "<u2")
    assert np.array_equal(cells.reshape(1955, 1841), pydicom.dcmread(out).pixel_array)


# -- other kinds of files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "colour"), [(".png", False), (".png", True), (".jpg", False), (".jpg", True)])
def test_pictures(tmp_path: Path, grey_model: Model, suffix: str, colour: bool) -> None:
    """Grey, and grey stored as colour; a JPEG becomes a PNG."""
    source, out = tmp_path / f"in{suffix}", tmp_path / "out.png"
    grey = noise((70, 90), 255).astype(np.uint8)
    Image.fromarray(np.repeat(grey[:, :, None], 3, 2) if colour else grey).save(source, quality=90)
    model = grey_model(near=source)
    outcome = attack_file(source, out, model=model, eps="8", max_iter=5)
    assert outcome.success
    assert 0 < outcome.linf <= 8
    assert outcome.budget == "8 grey levels (3.1 % of the range)"
    with Image.open(source) as before, Image.open(out) as after:
        assert before.mode == after.mode == ("RGB" if colour else "L")
        pixels = np.asarray(after).astype(int)
        assert abs(pixels - np.asarray(before).astype(int)).max() == outcome.linf
        if colour:
            assert (pixels == pixels[:, :, :1]).all()


def test_colour(tmp_path: Path, grey_model: Model) -> None:
    source = tmp_path / "in.png"
    rgb = np.stack([noise((64, 64), 255, seed) for seed in range(3)], 2).astype(np.uint8)
    Image.fromarray(rgb).save(source)
    model = grey_model(
        near=source, args={**RESNET, "n_input_channels": 3}, input={"shape": [3, 64, 64], "photometric": "RGB"}
    )
    assert attack_file(source, tmp_path / "out.png", model=model, eps="8", max_iter=5).success
    grey = tmp_path / "grey.png"
    Image.fromarray(rgb[:, :, 0]).save(grey)
    attack_file(grey, tmp_path / "out2.png", model=model, eps="8", max_iter=1)  # grey is shown to all three channels
    with pytest.raises(ImageError, match=r"in\.png has 3 channels, the model takes 1"):
        attack_file(source, tmp_path / "out3.png", model=grey_model(), eps="8")


@pytest.mark.parametrize(("kind", "suffix"), [("u1", ".nii"), ("i2", ".nii.gz"), ("f4", ".nii.gz")])
def test_volumes(tmp_path: Path, grey_model: Model, kind: str, suffix: str) -> None:
    """8 bits as they are; signed and floating-point voxels through the display range of the header."""
    voxels = noise((20, 18, 16), 255 if kind == "u1" else 2000).astype(kind)
    volume = nib.Nifti1Image(voxels, np.diag([2.0, 2, 2, 1]))
    if kind != "u1":
        volume.header["cal_min"], volume.header["cal_max"] = 100, 1900
    source, out = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    volume.to_filename(source)
    model = grey_model(near=source, input={"shape": [1, 16, 16, 16]})
    outcome = attack_file(source, out, model=model, eps="2%", max_iter=5)
    assert outcome.success
    found = nib.load(out)
    assert np.array_equal(found.affine, volume.affine)
    assert found.get_data_dtype() == voxels.dtype
    change = abs(np.asarray(found.dataobj, np.float64) - voxels)
    assert change.max() == pytest.approx(outcome.linf, rel=1e-6)
    assert 0 < change.max() <= 0.02 * {"u1": 255, "i2": 1800, "f4": 1800}[kind] * (1 + 1e-5)


def test_written_files_keep_their_decision_in_another_process(tmp_path: Path, grey_model: Model) -> None:
    sources = [tmp_path / "inverted.dcm", tmp_path / "colour.png", tmp_path / "volume.nii.gz"]
    header = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 900, "WindowWidth": 2500}
    write_dicom(sources[0], noise((90, 70), 4095), **header)
    Image.fromarray(np.stack([noise((64, 64), 255)] * 3, 2).astype(np.uint8)).save(sources[1])
    nib.Nifti1Image(noise((20, 18, 16), 255).astype(np.uint8), np.eye(4)).to_filename(sources[2])
    outcomes, files = [], {}
    for source in sources:
        shape = [1, 16, 16, 16] if source.name.endswith(".nii.gz") else [1, 64, 64]
        model = grey_model(near=source, name=source.name.split(".")[0], input={"shape": shape})
        out = source.with_name(f"out-{source.name}")
        outcomes.append(attack_file(source, out, model=model, eps="2%", max_iter=5))
        files[out] = model
    for outcome, answer in zip(outcomes, in_a_new_process(files), strict=True):
        assert outcome.success
        assert answer["label"] == outcome.after.label != outcome.before.label
        assert answer["p"] == pytest.approx(list(outcome.after.probabilities.values()), abs=1e-6)


# -- goals, norms and budgets ------------------------------------------------------------------------------------------


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(noise((64, 64), 255).astype(np.uint8)).save(path)
    return path


def test_targets(tmp_path: Path, grey_model: Model, picture: Path) -> None:
    model, out = grey_model(near=picture), tmp_path / "out.png"
    assert attack_file(picture, out, model=model, eps="8", max_iter=5, target="no").after.label == "no"
    kept = attack_file(picture, out, model=model, eps="8", max_iter=5, target="yes")
    assert kept.success
    assert kept.before.label == kept.after.label == "yes"
    with pytest.raises(
        InputError, match=r"label 'maybe' is outside the model's card: it has 2 classes \(0 = no, 1 = y"
    ):
        attack_file(picture, tmp_path / "none.png", model=model, target="maybe")
    assert not (tmp_path / "none.png").exists()


def test_findings_of_a_multi_label_model(tmp_path: Path, grey_model: Model, picture: Path) -> None:
    """The set of findings is the decision; each image has one, and no label is a target."""
    head = {"kind": "multi-label", "labels": ["nodule", "effusion"]}
    model = grey_model(args={**RESNET, "num_classes": 2}, head=head)
    found = attack_file(picture, tmp_path / "out.png", model=model, eps="1", max_iter=1)
    p = found.before.probabilities
    assert list(p) == ["nodule", "effusion"]
    assert found.before.label == (", ".join(name for name in p if p[name] > 0.5) or "none")
    attacked = attack_file(picture, tmp_path / "out.png", model=model, eps="100", max_iter=20)
    assert attacked.success == (attacked.after.label != attacked.before.label)
    with pytest.raises(InputError, match="targets are defined for models with exclusive labels"):
        attack_file(picture, tmp_path / "none.png", model=model, target="nodule")


def test_the_control_and_the_other_norm(tmp_path: Path, grey_model: Model, picture: Path) -> None:
    model = grey_model(near=picture, margin=0.1)
    noise_outcome = attack_file(picture, tmp_path / "n.png", model=model, attack="noise", eps="8")
    assert not noise_outcome.success
    assert "the attack did NOT change the decision" in noise_outcome.lines()[-1]
    assert attack_file(picture, tmp_path / "p.png", model=model, eps="8", max_iter=10).success
    out = tmp_path / "l2.png"
    assert attack_file(picture, out, model=model, norm="l2", eps="300", max_iter=10).success
    change = np.asarray(Image.open(out)).astype(float) - np.asarray(Image.open(picture))
    assert 0 < np.linalg.norm(change) <= 300


def test_a_seed_repeats_a_file(tmp_path: Path, grey_model: Model, picture: Path) -> None:
    model = grey_model(near=picture)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        attack_file(picture, tmp_path / f"{name}.png", model=model, eps="8", max_iter=3, seed=seed)
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("text", "value"), [("12", 12), (" 0.5 ", 0.5), ("1e1", 10), ("1%", 19.99), (" 50 % ", 999.5), ("200%", 3998)]
)
def test_budgets_in_stored_values_and_per_cent_of_the_window(tmp_path: Path, text: str, value: float) -> None:
    """A window of width w shows w - 1 steps (PS3.3 C.11.2.1.2); the slope of 2 halves that in stored values."""
    header = {"WindowCenter": 1500, "WindowWidth": 3999, "RescaleSlope": 2, "RescaleIntercept": 0}
    image = read_image(write_dicom(tmp_path / "in.dcm", noise((8, 8), 4095), **header))
    assert displayed_span(image) == 1999
    assert parse_budget(text, image) == pytest.approx(value)


def test_the_range_bounds_what_a_window_shows(tmp_path: Path) -> None:
    wide = write_dicom(tmp_path / "w.dcm", noise((8, 8), 4095), WindowCenter=0, WindowWidth=100_000)
    none = write_dicom(tmp_path / "n.dcm", noise((8, 8), 4095))
    assert displayed_span(read_image(wide)) == displayed_span(read_image(none)) == 4095


@pytest.mark.parametrize("text", ["", "%", "0", "-1", "nan", "inf", "1e999", "one", "1 % %", "1%%", "0%", "--1"])
def test_budgets_that_are_none(tmp_path: Path, picture: Path, text: str) -> None:
    with pytest.raises(InputError, match="eps must be a positive number of stored values or a percentage such as 1%"):
        parse_budget(text, read_image(picture))


# -- what does not fit -------------------------------------------------------------------------------------------------


def test_models_of_another_kind_of_image(tmp_path: Path, grey_model: Model, picture: Path) -> None:
    out = tmp_path / "out.png"
    deep = grey_model(input={"shape": [1, 8, 8, 8]})
    with pytest.raises(ModelError, match=r"picture\.png has 2 spatial axes, the model takes 3"):
        attack_file(picture, out, model=deep)
    other = grey_model(input={"low": -1024, "high": 3071, "unit": "HU"})
    with pytest.raises(
        ModelError, match=r"holds values in grey level, the model takes HU from -1024 to 3071: there is no defined"
    ):
        attack_file(picture, out, model=other)
    assert not out.exists()


def test_a_model_of_the_physical_unit(tmp_path: Path, grey_model: Model) -> None:
    """Hounsfield units: slope and intercept are applied, the window is not."""
    pixels = noise((64, 64), 4095)
    header = {"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU", "WindowCenter": 40, "WindowWidth": 9}
    source = write_dicom(tmp_path / "in.dcm", pixels, Modality="CT", **header)
    model = grey_model(near=source, input={"low": -1024, "high": 3071, "unit": "HU"})
    outcome = attack_file(source, tmp_path / "out.dcm", model=model, eps="60", max_iter=5)
    hounsfield = (pixels - 1024)[None, None].astype(np.float32)
    assert outcome.before.probabilities["yes"] == pytest.approx(load(model).predict_proba(hounsfield)[0, 1], abs=1e-6)
    assert outcome.success


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"attack": "patch"}, InputError, "attack 'patch' does not run on a single file; choose one of pgd, noise"),
        ({"attack": "fgsm"}, InputError, "attack 'fgsm' does not run on a single file"),
        ({"norm": "l1"}, InputError, "unknown norm 'l1'; choose one of linf, l2"),
        ({"model": "nope"}, ModelError, "unknown model 'nope'"),
        ({"out": "deep/out.png"}, ImageError, "deep is no folder"),
        ({"out": "out.jpg"}, ImageError, r"\.jpg may lose what was attacked; write PNG"),
        ({"out": "out.dcm"}, ImageError, r"the suffix '\.dcm' does not fit PNG"),
        ({"out": "picture.png"}, ImageError, "is the reference itself, which is never overwritten"),
    ],
)
def test_arguments_that_cannot_be(
    tmp_path: Path, grey_model: Model, picture: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    content = picture.read_bytes()
    arguments = {"model": grey_model(), "max_iter": 1, **changes}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=message):
        attack_file(picture, tmp_path / arguments.pop("out", "out.png"), **arguments)
    assert sorted(tmp_path.rglob("*")) == before
    assert picture.read_bytes() == content


def test_a_name_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "image.png"
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(picture)
    monkeypatch.setattr("art_medical.evaluation.single_image.load", lambda *_, **__: pytest.fail("work was begun"))
    for name in ("attacked.jpg", "attacked.dcm", "image.png", "nowhere/attacked.png"):
        with pytest.raises(ImageError):
            attack_file(picture, tmp_path / name, model="any")
    assert [file.name for file in tmp_path.iterdir()] == ["image.png"]
