"""Signatures of bundles and adapters, publishers that are pinned, adapters that are made here."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edgeladder.cli.app import main
from edgeladder.core import made_here, signature, trusted_keys
from edgeladder.core.archive import pack
from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import ConfigError, IntegrityError
from edgeladder.core.tensors import TensorFile
from edgeladder.core.trusted_keys import PublicKey, pin, pinned_keys
from edgeladder.runtime.adapter import adapter_of, load_adapter, save_adapter

pytest.importorskip("cryptography")  # the extra `sign`


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine that pins nobody; its folder of configuration."""
    monkeypatch.setenv(trusted_keys.VARIABLE, "")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(trusted_keys, "SYSTEM_FILE", tmp_path / "system_keys")
    return tmp_path / "config"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    signature.make_key(tmp_path / "publisher")
    return tmp_path / "publisher"


def public(key: Path) -> PublicKey:
    return trusted_keys.read_keys(key.with_name(f"{key.name}.pub"))[0]


def test_a_key_is_its_owners_and_never_replaced(key: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="never replaced"):
        signature.make_key(key)
    assert public(key).fingerprint.startswith("SHA256:") and len(public(key).raw) == 32


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(key: Path, bundle_copy: Path, mode: int) -> None:
    key.chmod(mode)
    with pytest.raises(ConfigError, match="others than its owner"):
        signature.sign(bundle_copy, "bundle", key)


def test_keys_of_openssh_and_openssl_sign(tmp_path: Path, bundle_copy: Path) -> None:
    ssh, pem, rsa = tmp_path / "ssh", tmp_path / "pem", tmp_path / "rsa"
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", ssh], **quiet)
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", pem], **quiet)
    subprocess.run(["openssl", "genpkey", "-algorithm", "RSA", "-out", rsa], **quiet)
    pem.chmod(0o600), rsa.chmod(0o600)
    assert signature.sign(bundle_copy, "bundle", ssh) == public(ssh)
    assert signature.verify(bundle_copy, "bundle") == public(ssh)
    assert signature.sign(bundle_copy, "bundle", pem) == signature.verify(bundle_copy, "bundle")
    with pytest.raises(ConfigError, match="not an Ed25519 key"):
        signature.sign(bundle_copy, "bundle", rsa)
    ssh.write_text("words")
    with pytest.raises(ConfigError, match="not a private key"):
        signature.sign(bundle_copy, "bundle", ssh)


def test_a_pinned_publisher_and_nobody_else(
    key: Path, bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    signature.make_key(other)
    pin([public(key)])
    with pytest.raises(IntegrityError, match="is not signed; pinned is SHA256"):
        Bundle.open(bundle_copy, verify=False)
    signature.sign(bundle_copy, "bundle", other)
    with pytest.raises(IntegrityError, match="is signed by SHA256"):
        Bundle.open(bundle_copy)
    signature.sign(bundle_copy, "bundle", key)
    assert Bundle.open(bundle_copy).digest
    archive = tmp_path / "b.tar"
    pack(bundle_copy, archive)
    assert Bundle.open(archive).folder == tmp_path / "b"
    # signed by another in the archive: what was unpacked before is no way around it
    signature.sign(bundle_copy, "bundle", other)
    pack(bundle_copy, archive)
    with pytest.raises(IntegrityError, match="is signed by"):
        Bundle.open(archive)
    signature.sign(bundle_copy, "bundle", key)
    weights = bundle_copy / "backbone/image/00_stem.weights"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError, match="not what the manifest says"):
        Bundle.open(bundle_copy, verify=False)  # pinned: every byte, whoever asks for less


def test_a_changed_manifest_or_signature(key: Path, bundle_copy: Path) -> None:
    signature.sign(bundle_copy, "bundle", key)
    pin([public(key)])
    manifest, beside = bundle_copy / "manifest.json", bundle_copy / "manifest.json.sig"
    whole, signed = manifest.read_bytes(), json.loads(beside.read_text())
    manifest.write_bytes(whole.replace(b"bicubic", b"nearest"))
    with pytest.raises(IntegrityError, match="is not what SHA256"):
        Bundle.open(bundle_copy)
    manifest.write_bytes(whole)
    for values in (
        {**signed, "signature": ""}, {**signed, "signature": "?"}, {**signed, "key": "ssh-rsa A"},
        {**signed, "algorithm": "none"}, {}, [], {**signed, "signature": 5},
    ):  # fmt: skip
        beside.write_text(json.dumps(values))
        with pytest.raises(IntegrityError):
            Bundle.open(bundle_copy)
    beside.write_text("[" * 4000)
    with pytest.raises(IntegrityError):
        Bundle.open(bundle_copy)
    beside.unlink()
    beside.symlink_to(bundle_copy / "manifest.json")
    with pytest.raises(IntegrityError, match="not a signature"):
        Bundle.open(bundle_copy)


def test_a_bundles_signature_is_no_adapters(key: Path, tmp_path: Path) -> None:
    content = b'{"same": "bytes"}'
    for name in signature.SIGNED.values():
        (tmp_path / name).write_bytes(content)
    signature.sign(tmp_path, "bundle", key)
    shutil.copy(tmp_path / "manifest.json.sig", tmp_path / "adapter.json.sig")
    with pytest.raises(IntegrityError, match="is not what"):
        signature.verify(tmp_path, "adapter")


def test_every_place_that_pins(key: Path, nobody: Path, tmp_path: Path, monkeypatch) -> None:
    assert pinned_keys() == []
    line = public(key).line
    for path in (nobody / "edgeladder" / "trusted_keys", tmp_path / "system_keys"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# publisher\n\n{line} with a comment\n")
        assert pinned_keys() == [public(key)]
        path.write_text("# nobody\n")
        with pytest.raises(ConfigError, match="no key in this file"):
            pinned_keys()
        path.unlink()
    monkeypatch.setenv(trusted_keys.VARIABLE, f"{key}.pub")
    assert pinned_keys() == [public(key)]
    monkeypatch.setenv(trusted_keys.VARIABLE, line)
    pin([public(key)])
    assert pinned_keys() == [public(key)]
    monkeypatch.setenv(trusted_keys.VARIABLE, str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="cannot read trusted keys"):
        pinned_keys()


def test_without_the_library_nothing_pinned_passes(
    key: Path, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signature.sign(bundle_copy, "bundle", key)
    pin([public(key)])
    for name in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match="need the package cryptography") as caught:
        Bundle.open(bundle_copy)
    assert "edgeladder[sign]" in str(caught.value.remedy)


def test_what_this_machine_made(nobody: Path, key: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "adapter.json").write_text("{}")
    made_here.mark_made_here(run, b"{}")
    assert not (run / made_here.MARK).exists() and not nobody.exists(), "nobody is pinned"
    pin([public(key)])
    with pytest.raises(IntegrityError, match="this adapter is not signed"):
        made_here.require_trusted_adapter(run)
    made_here.mark_made_here(run, b"{}")
    made_here.require_trusted_adapter(run)
    secret = made_here.secret_path()
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    (run / "adapter.json").write_text('{"classes": ["reversed"]}')
    with pytest.raises(IntegrityError):
        made_here.require_trusted_adapter(run)
    signature.sign(run, "adapter", key)
    made_here.require_trusted_adapter(run)
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="read by others"):
        made_here.mark_made_here(run, b"{}")


def test_the_commands(bundle_copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: object) -> tuple[int, dict]:
        capfd.readouterr()
        code = main([*map(str, arguments), "--json"])
        return code, json.loads(capfd.readouterr().out)

    mine, other = tmp_path / "mine", tmp_path / "other"
    code, made = run("bundle", "keygen", "--out", mine)
    assert code == 0 and run("bundle", "keygen", "--out", other)[0] == 0
    assert run("bundle", "verify", "--bundle", bundle_copy)[1]["signed_by"] is None
    assert run("bundle", "verify", "--bundle", bundle_copy, "--key", f"{mine}.pub")[0] == 5
    code, signed = run("bundle", "sign", "--bundle", bundle_copy, "--key", mine)
    assert code == 0 and signed["signed_by"] == made["fingerprint"]
    assert run("bundle", "verify", "--bundle", bundle_copy, "--key", f"{mine}.pub")[0] == 0
    assert run("bundle", "verify", "--bundle", bundle_copy, "--key", f"{other}.pub")[0] == 5
    assert run("bundle", "sign", "--bundle", bundle_copy, "--key", tmp_path / "none")[0] == 2
    archive = tmp_path / "signed.tar"
    pack(bundle_copy, archive)
    assert run("bundle", "sign", "--bundle", archive, "--key", other)[0] == 0
    assert run("--trust-key", f"{mine}.pub", "bundle", "verify", "--bundle", bundle_copy)[0] == 0
    assert run("bundle", "verify", "--bundle", archive)[0] == 5, "pinned by the option before"
    assert run("--trust-key", tmp_path / "none", "devices")[0] == 2


def test_a_device_knows_the_adapter_that_it_wrote(
    bundle_folder: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What training saves is read again here, and elsewhere where a publisher signed it."""
    bundle = Bundle.open(bundle_folder)
    values = dict(TensorFile(bundle.path(bundle.manifest.ladder.initial)).items())
    made = adapter_of(bundle, values, classes=["a"], class_names=["a"], templates=["{}"])
    run = tmp_path / "run"
    run.mkdir()
    pin([public(key)])
    save_adapter(run, made)
    assert load_adapter(run, bundle).record.classes == ["a"]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another box"))
    with pytest.raises(IntegrityError, match="this adapter is not signed"):
        load_adapter(run)
    assert main(["adapter", "sign", "--run", str(run), "--key", str(key)]) == 0
    assert load_adapter(run, bundle).record.classes == ["a"]
    assert main(["adapter", "verify", "--run", str(run), "--key", f"{key}.pub"]) == 0
    save_adapter(run, made)  # a signature of what lay here before would only mislead
    assert signature.verify(run, "adapter") is None


def test_a_signed_record_without_the_hash_of_its_weights(
    bundle_folder: Path, key: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Version 0.1 wrote such: its signature would let any weights in."""
    bundle = Bundle.open(bundle_folder)
    values = dict(TensorFile(bundle.path(bundle.manifest.ladder.initial)).items())
    made = adapter_of(bundle, values, classes=["a"], class_names=["a"], templates=["{}"])
    save_adapter(tmp_path, made)
    told = json.loads((tmp_path / "adapter.json").read_text())
    del told["digest"], told["sha256"]
    (tmp_path / "adapter.json").write_text(json.dumps({**told, "schema_version": 1}))
    assert load_adapter(tmp_path, bundle).record.classes == ["a"], "nobody is pinned"
    for words in (["sign", "--key", str(key)], ["verify", "--key", f"{key}.pub"]):
        signature.sign(tmp_path, "adapter", key)
        assert main(["adapter", *words, "--run", str(tmp_path)]) == 5
        assert "no hash of the weights" in capfd.readouterr().err
    pin([public(key)])
    with pytest.raises(IntegrityError, match="no hash of the weights"):
        load_adapter(tmp_path, bundle)
