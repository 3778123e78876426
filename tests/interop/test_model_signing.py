# SPDX-License-Identifier: Apache-2.0
"""Our signatures against the ``model-signing`` tool, each reading what the other wrote."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from art_medical.errors import InputError, IntegrityError
from art_medical.zoo.signature import sign_folder, verify_folder

PATHS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
TOOL = shutil.which("model_signing", path=PATHS)
pytestmark = pytest.mark.skipif(TOOL is None, reason="needs the tool model_signing (packages model-signing, pyopenssl)")

CURVES = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
FILES = {
    "card.json": b"{}\n",
    "models/model.pt": bytes(1 << 20),
    "models-old": b"sorts before the folder as text, after it as a path",
    "Größe 1.txt": "ü".encode(),
    "empty": b"",
    ".gitattributes": b"* -text",
}


def tool(*arguments: str | Path) -> tuple[int, str]:
    assert TOOL is not None
    done = subprocess.run([TOOL, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def tool_signs(folder: Path, keys: Path) -> None:
    code, output = tool("sign", "key", folder, "--private_key", keys / "key.pem", "--signature", folder / "model.sig")
    assert (code, "Signing succeeded" in output) == (0, True), output


def tool_verifies(folder: Path, keys: Path) -> tuple[int, str]:
    return tool("verify", "key", folder, "--public_key", keys / "key.pub", "--signature", folder / "model.sig")


def we_sign(folder: Path, keys: Path) -> None:
    sign_folder(folder, (keys / "key.pem").read_bytes())


def we_verify(folder: Path, keys: Path) -> None:
    assert len(verify_folder(folder, folder / "model.sig", [(keys / "key.pub").read_bytes()]).files) == len(FILES) - 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "a model"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_keys(folder: Path, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> Path:
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pub").write_bytes(public)
    return folder


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return write_keys(tmp_path, ec.derive_private_key(0x5EED, CURVES["P-256"]))


@pytest.mark.parametrize("curve", CURVES)
def test_each_verifies_what_the_other_signed(folder: Path, tmp_path: Path, curve: str) -> None:
    keys = write_keys(tmp_path, ec.generate_private_key(CURVES[curve]))
    we_sign(folder, keys)
    assert tool_verifies(folder, keys) == (0, "Verification succeeded\n")
    (folder / "model.sig").unlink()
    tool_signs(folder, keys)
    we_verify(folder, keys)


def change(folder: Path) -> None:
    data = bytearray(FILES["models/model.pt"])
    data[-1] ^= 1
    (folder / "models" / "model.pt").write_bytes(data)


def add(folder: Path) -> None:
    (folder / "models" / "extra.py").write_text("import os")


def remove(folder: Path) -> None:
    (folder / "empty").unlink()


def link(folder: Path) -> None:
    (folder / "empty").unlink()
    (folder / "empty").symlink_to(os.devnull)


def damage(folder: Path) -> None:
    text = (folder / "model.sig").read_text()
    place = text.index('"sig":') + 30
    (folder / "model.sig").write_text(text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :])


@pytest.mark.parametrize("sign", [we_sign, tool_signs])
@pytest.mark.parametrize(
    ("harm", "theirs", "ours"),
    [
        (change, "Signature mismatch: ['Hash mismatch for ", "'models/model.pt' has sha256"),
        (add, "Extra files found in model 'a model': models/extra.py", "'models/extra.py' is not signed"),
        (remove, "Missing files in model 'a model': empty", "the signed file 'empty' is missing"),
        (link, "because it is a symlink", "is a symbolic link"),
        (damage, "Verification failed", "the signature is not valid"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_both_refuse_the_same_harm(
    folder: Path,
    keys: Path,
    sign: Callable[[Path, Path], None],
    harm: Callable[[Path], None],
    theirs: str,
    ours: str,
) -> None:
    sign(folder, keys)
    harm(folder)
    code, output = tool_verifies(folder, keys)
    assert code == 1
    assert theirs in output
    with pytest.raises(IntegrityError) as caught:
        we_verify(folder, keys)
    assert ours in str(caught.value)


def test_both_refuse_another_key(folder: Path, keys: Path, tmp_path: Path) -> None:
    we_sign(folder, keys)
    (tmp_path / "other").mkdir()
    other = write_keys(tmp_path / "other", ec.derive_private_key(0xBAD, CURVES["P-256"]))
    code, output = tool_verifies(folder, other)
    assert (code, "Key mismatch" in output) == (1, True)
    with pytest.raises(IntegrityError, match="is not trusted"):
        we_verify(folder, other)


def test_both_refuse_other_kinds_of_keys(folder: Path, tmp_path: Path) -> None:
    for key in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256K1())):
        keys = write_keys(tmp_path, key)
        code, _ = tool("sign", "key", folder, "--private_key", keys / "key.pem", "--signature", folder / "model.sig")
        assert code == 1
        with pytest.raises(InputError, match="P-256, P-384 and P-521 are taken"):
            we_sign(folder, keys)


def test_a_file_that_the_signer_excused_is_refused_by_us_alone(folder: Path, keys: Path) -> None:
    """The tool takes the list of ignored files from the signature, and says nothing of what hides behind it."""
    extra = folder / "extra.py"
    arguments = ("--private_key", keys / "key.pem", "--signature", folder / "model.sig", "--ignore-paths", extra)
    assert tool("sign", "key", folder, *arguments)[0] == 0
    we_verify(folder, keys)
    extra.write_text("import os")
    assert tool_verifies(folder, keys) == (0, "Verification succeeded\n")
    with pytest.raises(IntegrityError, match=r"'extra\.py' is not signed"):
        we_verify(folder, keys)


def test_hashes_that_we_do_not_take(folder: Path, keys: Path) -> None:
    """The tool's library can also hash by BLAKE and by shards; a signature of that kind is refused by name."""
    code = (
        "import sys, model_signing as m; h = m.hashing.Config(); h.{call}; "
        "m.signing.Config().use_elliptic_key_signer(private_key=sys.argv[2]).set_hashing_config(h)"
        ".sign(sys.argv[1], sys.argv[3])"
    )
    assert TOOL is not None
    python = Path(TOOL).with_name("python")
    for call, message in [
        ("use_file_serialization(hashing_algorithm='blake3')", "hash_type: Input should be 'sha256'"),
        ("use_shard_serialization()", "serialization.method: Input should be 'files'"),
    ]:
        signature = folder / "model.sig"
        signature.unlink(missing_ok=True)
        command = [python, "-c", code.format(call=call), folder, keys / "key.pem", signature]
        subprocess.run(command, check=True, timeout=60)
        with pytest.raises(IntegrityError, match=message):
            we_verify(folder, keys)
