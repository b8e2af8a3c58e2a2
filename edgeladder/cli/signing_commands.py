"""`edgeladder bundle` keygen, sign, verify; `edgeladder adapter` sign, verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeladder.cli import options
from edgeladder.cli.command import App
from edgeladder.cli.output import Answer

if TYPE_CHECKING:
    from edgeladder.core.signature import Kind
    from edgeladder.core.trusted_keys import PublicKey

PrivateKey = Annotated[Path, typer.Option("--key", help="The publisher's private key.")]
Expected = Annotated[
    str | None,
    typer.Option("--key", help="Public key that must have signed it: a .pub file, or its line."),
]
_UNSIGNED = "unsigned: its hashes protect against accidents only"


def register(app: typer.Typer) -> None:
    """Add the groups to the application."""
    for name, summary, commands in (
        ("bundle", "Sign and verify a bundle; make a publisher's key.", (keygen, sign, verify)),
        ("adapter", "Sign and verify a run's adapter.", (sign_adapter, verify_adapter)),
    ):
        group = App(help=summary, no_args_is_help=True)
        for command in commands:
            group.command(command.__name__.removesuffix("_adapter"))(command)
        app.add_typer(group, name=name)


def keygen(
    out: Annotated[Path, typer.Option("--out", help="Private key; FILE.pub goes beside.")] = Path(
        "publisher.key"
    ),
    as_json: options.Json = False,
) -> Answer:
    """Make a publisher's key: share FILE.pub, keep FILE to yourself."""
    from edgeladder.core.signature import make_key

    public = make_key(out)
    values = {"key": str(out), "public": f"{out}.pub", "fingerprint": public.fingerprint}
    return Answer(values, f"{out} (keep it), {out}.pub (share it): {public.fingerprint}")


def sign(
    key: PrivateKey, bundle: options.Bundle = options.BUNDLE, as_json: options.Json = False
) -> Answer:
    """Sign a bundle, every file of it verified first."""
    from edgeladder.core.archive import is_archive, pack
    from edgeladder.core.bundle import Bundle
    from edgeladder.core.signature import sign as write_signature

    opened = Bundle.open(bundle, trusted=[])
    public = write_signature(opened.folder, "bundle", key)
    if is_archive(bundle):
        pack(opened.folder, bundle, option="--bundle")
    return _answer("bundle", bundle, opened.digest, public)


def verify(
    bundle: options.Bundle = options.BUNDLE,
    key: Expected = None,
    as_json: options.Json = False,
) -> Answer:
    """Verify a bundle's files and who signed it."""
    from edgeladder.core.bundle import Bundle

    opened = Bundle.open(bundle, trusted=_expected(key))
    return _answer("bundle", bundle, opened.digest, _signer(opened.folder, "bundle"))


def sign_adapter(key: PrivateKey, run: options.Run = None, as_json: options.Json = False) -> Answer:
    """Sign a run's adapter, its weights verified first."""
    from edgeladder.core.signature import sign as write_signature
    from edgeladder.runtime.adapter import load_adapter, require_hashed

    folder = options.newest_run(run)
    record = load_adapter(folder, trusted=False).record
    require_hashed(record, where=str(folder))
    return _answer("adapter", folder, record.sha256, write_signature(folder, "adapter", key))


def verify_adapter(
    run: options.Run = None, key: Expected = None, as_json: options.Json = False
) -> Answer:
    """Verify a run's adapter and who signed it."""
    from edgeladder.core.signature import require_trusted
    from edgeladder.runtime.adapter import load_adapter, require_hashed

    folder = options.newest_run(run)
    wanted = _expected(key)
    adapter = load_adapter(folder, trusted=wanted is None)
    if wanted is not None:
        require_hashed(adapter.record, where=str(folder))
        require_trusted(folder, "adapter", wanted)
    return _answer("adapter", folder, adapter.record.sha256, _signer(folder, "adapter"))


def _expected(key: str | None) -> list[PublicKey] | None:
    from edgeladder.core.trusted_keys import parse_or_read

    return None if key is None else parse_or_read(key)


def _signer(folder: Path, kind: Kind) -> PublicKey | None:
    from edgeladder.core.signature import verify as find_signer

    return find_signer(folder, kind)


def _answer(kind: str, path: Path, digest: str, signer: PublicKey | None) -> Answer:
    name = None if signer is None else signer.fingerprint
    values = {kind: str(path), "digest": digest, "signed_by": name}
    said = _UNSIGNED if signer is None else f"signed by {name}"
    return Answer(values, f"{path}: every hash is right; {said}")
