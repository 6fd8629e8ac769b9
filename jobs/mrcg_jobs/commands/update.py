"""The commands that change what is served without a training: ``mrcg reindex`` and ``mrcg erase``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrcg.cli import console
from mrcg.cli.console import JsonOption, SetOption, StoreOption
from mrcg.errors import IntegrityError, UsageError
from mrcg.execution.executor import LocalExecutor
from mrcg.privacy.pseudonyms import Pseudonyms, pseudonyms_from_environment
from mrcg.privacy.signing import signer_from_environment, signing_key_needed
from mrcg.privacy.suppression import IMAGE, PATIENT, suppressed
from mrcg.releases.release import promote, read_release
from mrcg.storage.store import Store
from mrcg_jobs.commands.run import PromoteWhen, RayOption, SourceOption, gate_of, show_stages, stop_ray
from mrcg_jobs.runner import StageResult, run_stages

if TYPE_CHECKING:
    from mrcg.erasure.records import ErasureTarget, Receipt


def reindex(
    source: SourceOption,
    store: StoreOption,
    settings: SetOption = None,
    ray: RayOption = None,
    promote_when: Annotated[
        PromoteWhen, typer.Option("--promote", help="When the result becomes the release.")
    ] = PromoteWhen.gate,
    as_json: JsonOption = False,
) -> None:
    """Bring the release's gallery up to its source: only new scans are read, embedded and added; the models stay."""
    from mrcg.corpus.sources import open_source, survey
    from mrcg.pipeline.ancestry import ancestry_of
    from mrcg.pipeline.update import ReleaseUpdate

    opened = Store(store)
    line = ReleaseUpdate.of(opened, read_release(opened), settings or ())
    found = survey(open_source(source))
    ancestry = ancestry_of(opened, line.config, found, pseudonyms_from_environment())
    steps = line.steps(found, ancestry)
    if steps[0].version == line.release.corpus and not settings:
        _say_nothing_new(line.release.number, as_json)
        return
    results: list[StageResult] = []
    try:
        with console.StageBars(quiet=as_json) as bars:
            for result in run_stages(opened, line.config, found, steps, ray, bars.stage):
                bars.finish(result.stage)
                results.append(result)
    finally:
        stop_ray()
    outcome = None
    if promote_when != PromoteWhen.never:
        gate = gate_of(line.config) if promote_when == PromoteWhen.gate else None
        outcome = promote(opened, results[-1].version, gate)
    last = opened.manifest(results[-1].kind, results[-1].version)
    show_stages(results, f"{opened.url}/{last.folder}", outcome, as_json)


def _say_nothing_new(number: int, as_json: bool) -> None:
    if as_json:
        console.emit_json({"stages": [], "release": number})
    else:
        console.say(f"nothing is new: release {number} holds all of this source")


def erase(
    store: StoreOption,
    patient: Annotated[str | None, typer.Option("--patient", help="A patient's id, as the source has it.")] = None,
    image: Annotated[str | None, typer.Option("--image", help="An image's id, as a hit shows it.")] = None,
    verify: Annotated[
        Path | None, typer.Option("--verify", help="Only check a receipt: is it genuine, is nothing left?")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the receipt to this file, too.")] = None,
    ray: RayOption = None,
    here: Annotated[bool, typer.Option("--here", help="Do all work in this process, without Ray.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Erase a patient or an image: nobody finds them from now on, and nothing of them stays. Signs a receipt."""
    if sum(one is not None for one in (patient, image, verify)) != 1:
        raise UsageError("say one of --patient ID, --image ID or --verify RECEIPT")
    if verify is not None:
        _check(Store(store), verify, as_json)
        return
    from mrcg_jobs.erasure import Eraser, forgetting

    signer, pseudonyms = signer_from_environment(), pseudonyms_from_environment()
    if signer is None:
        raise signing_key_needed()
    target = _target(patient, image, pseudonyms)
    opened = Store(store)
    opened.check_writable()
    if patient is not None:
        _say_other_keys(opened, pseudonyms)
    try:
        with console.StageBars(quiet=as_json) as bars:
            executor = LocalExecutor() if here else None
            forget = forgetting(opened, ray, here)
            signed = Eraser(opened, pseudonyms, signer, executor, ray, bars.stage, forget).erase(target)
    finally:
        stop_ray()
    if out is not None:
        console.write_file(out, signed.model_dump_json(indent=1).encode())
    if as_json:
        console.emit_json(signed.model_dump(mode="json"))
    else:
        _say_receipt(opened, signed.receipt)


def _target(patient: str | None, image: str | None, pseudonyms: Pseudonyms | None) -> ErasureTarget:
    from mrcg.erasure.records import ErasureTarget

    if patient is None:
        return ErasureTarget(kind=IMAGE, value=str(image))
    if pseudonyms is None:
        raise UsageError("--patient: without the key that made the pseudonyms nobody is found; set MRCG_PSEUDONYM_KEY")
    if not patient.strip():
        raise UsageError("--patient: that is no patient's id; write it as the source has it")
    return ErasureTarget(kind=PATIENT, value=pseudonyms.name("patient", patient.strip()))


def _say_receipt(store: Store, receipt: Receipt) -> None:
    console.say(
        f"{receipt.scans} scans erased, {len(receipt.removed_versions)} versions removed, "
        + (f"release {receipt.release} is current" if receipt.release else "there is no release")
    )
    if receipt.trained_on_them:
        console.say(
            f"models that learned from them, or may have, stay: {', '.join(receipt.trained_on_them)}; "
            "`mrcg run` trains others"
        )
    if receipt.identical_copies_left:
        console.say(
            f"{receipt.identical_copies_left} identical scans of others are left: `mrcg erase --image` takes one"
        )
    console.say(f"receipt: {store.url}/log/receipts/{receipt.ident}.json")


def _say_other_keys(store: Store, pseudonyms: Pseudonyms | None) -> None:
    """Under another key the patient has another pseudonym, and is not found there."""
    from mrcg.erasure.records import made_with

    corpora = [store.manifest("corpus", version) for version in store.versions("corpus")]
    own = None if pseudonyms is None else pseudonyms.fingerprint
    others = [one.version for one in corpora if made_with(one) not in (None, own)]
    if others and not any(made_with(one) == own for one in corpora):
        raise UsageError(
            f"no corpus in {store.url} was made with this MRCG_PSEUDONYM_KEY: set the one that made the pseudonyms"
        )
    if others:
        console.err.print(
            f"not looked at, for they were made with other keys: corpus {', '.join(others)}; erase with those, too",
            highlight=False,
            soft_wrap=True,
        )


def _check(store: Store, path: Path, as_json: bool) -> None:
    from mrcg.erasure.records import check_receipt, read_receipt

    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"--verify {path} cannot be read: {error.strerror}") from error
    signer = signer_from_environment()
    signed = read_receipt(data)
    verdict = check_receipt(store, signed, None if signer is None else signer.public_key, suppressed(store))
    if as_json:
        console.emit_json(verdict.model_dump(mode="json") | {"holds": verdict.holds})
    if verdict.holds:
        if not as_json:
            signed_by = "your key" if verdict.known_signer else f"key {signed.signed.public_key[:16]}…"
            console.say(
                f"genuine, signed with {signed_by}; {signed.receipt.scans} scans, nothing of them is in {store.url}"
            )
        return
    wrong = {
        "it is not what was signed": not verdict.genuine,
        "it was signed with another key": verdict.known_signer is False,
        f"still held by {', '.join(verdict.left[:3])}": bool(verdict.left),
        f"removed versions are back: {', '.join(verdict.versions_back[:3])}": bool(verdict.versions_back),
        "they are not on the suppression list any more": verdict.not_suppressed,
    }
    raise IntegrityError(
        f"{path}: {'; '.join(line for line, true in wrong.items() if true)}: run `mrcg erase` again, restore the list "
        "from a copy, or ask who gave you this receipt"
    )
