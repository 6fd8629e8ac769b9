"""Commands that change the served release without training: ``mrcg reindex`` and ``mrcg erase``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrcg.cli import console
from mrcg.cli.console import JsonOption, SetOption, StoreOption
from mrcg.errors import IntegrityError, NotFoundError, UsageError
from mrcg_jobs.commands.run import PromoteWhen, RayOption, SourceOption, gate_of, show_stages, stop_ray

# `mrcg --help` reads this module: what is heavy is imported by the functions that need it.
if TYPE_CHECKING:
    from mrcg.erasure.people import AskedPatient
    from mrcg.erasure.records import ErasureTarget, Receipt
    from mrcg.privacy.pseudonyms import Pseudonyms
    from mrcg.storage.store import Store
    from mrcg_jobs.runner import StageResult


def reindex(
    source: SourceOption,
    store: StoreOption,
    settings: SetOption = None,
    ray: RayOption = None,
    promote_when: Annotated[
        PromoteWhen, typer.Option("--promote", help="When to promote the result to the current release.")
    ] = PromoteWhen.gate,
    as_json: JsonOption = False,
) -> None:
    """Update the current release's gallery from its source; reads only new or changed files and keeps the models."""
    from mrcg.corpus.sources import open_source, survey
    from mrcg.pipeline.ancestry import ancestry_of
    from mrcg.pipeline.update import ReleaseUpdate
    from mrcg.privacy.pseudonyms import pseudonyms_from_environment
    from mrcg.releases.release import promote, read_release
    from mrcg.storage.store import Store
    from mrcg_jobs.runner import run_stages

    opened = Store(store)
    update = ReleaseUpdate.of(opened, read_release(opened), settings or ())
    surveyed = survey(open_source(source))
    ancestry = ancestry_of(opened, update.config, surveyed, pseudonyms_from_environment())
    steps = update.steps(surveyed, ancestry)
    if steps[0].version == update.release.corpus and not settings:
        _say_up_to_date(update.release.number, as_json)
        return
    results: list[StageResult] = []
    try:
        with console.StageBars(quiet=as_json) as bars:
            for result in run_stages(opened, update.config, surveyed, steps, ray, bars.stage):
                bars.finish(result.stage)
                results.append(result)
    finally:
        stop_ray()
    outcome = None
    if promote_when != PromoteWhen.never:
        gate = gate_of(update.config) if promote_when == PromoteWhen.gate else None
        outcome = promote(opened, results[-1].version, gate)
    last = opened.manifest(results[-1].kind, results[-1].version)
    show_stages(results, f"{opened.url}/{last.folder}", outcome, as_json)


def _say_up_to_date(number: int, as_json: bool) -> None:
    if as_json:
        console.emit_json({"stages": [], "release": number})
    else:
        console.say(f"nothing to do: release {number} is up to date with this source")


def erase(
    store: StoreOption,
    patient: Annotated[str | None, typer.Option("--patient", help="Patient id, as in the source.")] = None,
    issuer: Annotated[
        str | None, typer.Option("--issuer", help="Who assigned the patient id (IssuerOfPatientID); '' for none.")
    ] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Tenant whose patient it is.")] = None,
    site: Annotated[str | None, typer.Option("--site", help="Site at which the patient was scanned.")] = None,
    image: Annotated[str | None, typer.Option("--image", help="Image id, as shown in search hits.")] = None,
    verify: Annotated[
        Path | None,
        typer.Option("--verify", help="Erase nothing; check a receipt's signature and that no erased data is left."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the receipt to this file.")] = None,
    ray: RayOption = None,
    here: Annotated[bool, typer.Option("--here", help="Do all work in this process, without Ray.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Erase a patient or an image immediately and permanently, and sign a receipt."""
    from mrcg.erasure.people import AskedPatient
    from mrcg.execution.executor import LocalExecutor
    from mrcg.privacy.pseudonyms import pseudonyms_from_environment
    from mrcg.privacy.signing import missing_signing_key_error, signer_from_environment
    from mrcg.storage.store import Store

    if sum(option is not None for option in (patient, image, verify)) != 1:
        raise UsageError("give exactly one of --patient ID, --image ID or --verify RECEIPT")
    asked = None if patient is None else AskedPatient(patient=patient, issuer=issuer, tenant=tenant, site=site)
    if asked is None and any(option is not None for option in (issuer, tenant, site)):
        raise UsageError("--issuer, --tenant and --site say whose --patient it is: give --patient, too")
    if verify is not None:
        _verify_receipt(Store(store), verify, as_json)
        return
    from mrcg_jobs.erasure import Eraser, cache_sweeper

    signer, pseudonyms = signer_from_environment(), pseudonyms_from_environment()
    if signer is None:
        raise missing_signing_key_error()
    if asked is not None and pseudonyms is None:
        raise UsageError("--patient needs the key that the pseudonyms were made with: set MRCG_PSEUDONYM_KEY")
    opened = Store(store)
    opened.check_writable()
    if asked is not None:
        _check_pseudonym_key(opened, pseudonyms)
    target = _target(opened, asked, image, pseudonyms)
    try:
        with console.StageBars(quiet=as_json) as bars:
            executor = LocalExecutor() if here else None
            sweep = cache_sweeper(opened, ray, here)
            signed = Eraser(opened, pseudonyms, signer, executor, ray, bars.stage, sweep).erase(target)
    except NotFoundError as error:
        if asked is None or pseudonyms is None:
            raise
        raise _with_similar(error, opened, asked, pseudonyms) from error
    finally:
        stop_ray()
    if out is not None:
        console.write_file(out, signed.model_dump_json(indent=1).encode())
    if as_json:
        console.emit_json(signed.model_dump(mode="json"))
    else:
        _say_receipt(opened, signed.receipt)


def _target(
    store: Store, asked: AskedPatient | None, image: str | None, pseudonyms: Pseudonyms | None
) -> ErasureTarget:
    from mrcg.erasure.people import find_patient
    from mrcg.erasure.records import ErasureTarget
    from mrcg.privacy.suppression import IMAGE

    if asked is None:
        return ErasureTarget(kind=IMAGE, value=str(image))
    assert pseudonyms is not None
    return find_patient(store, asked, pseudonyms)


def _with_similar(error: NotFoundError, store: Store, asked: AskedPatient, pseudonyms: Pseudonyms) -> NotFoundError:
    """Return the error with those whom the user may have meant."""
    from mrcg.erasure.people import describe_similar

    similar = describe_similar(store, asked, pseudonyms)
    if not similar:
        return NotFoundError(f"{error}; check the id against the source")
    return NotFoundError(f"{error}; known are: {', '.join(similar)}")


def _say_receipt(store: Store, receipt: Receipt) -> None:
    console.say(
        f"{receipt.scans} scans erased, {len(receipt.removed_versions)} versions removed, "
        + (f"release {receipt.release} is current" if receipt.release else "there is no release")
    )
    if receipt.trained_on_them:
        console.say(
            "models that may be trained on the erased scans remain: "
            f"{', '.join(receipt.trained_on_them)}; `mrcg run` trains new ones"
        )
    if receipt.identical_copies_left:
        console.say(
            f"{receipt.identical_copies_left} identical scans that belong to others remain: "
            "`mrcg erase --image ID` erases an image with its copies"
        )
    console.say(f"receipt: {store.url}/log/receipts/{receipt.ident}.json")


def _check_pseudonym_key(store: Store, pseudonyms: Pseudonyms | None) -> None:
    """Warn of corpora made with another key: the patient has another pseudonym there and is not found.

    Raises:
        UsageError: other keys were used, and no corpus was made with this one.
    """
    from mrcg.erasure.records import key_fingerprint

    corpora = [store.manifest("corpus", version) for version in store.versions("corpus")]
    own = None if pseudonyms is None else pseudonyms.fingerprint
    others = [corpus.version for corpus in corpora if key_fingerprint(corpus) not in (None, own)]
    if others and not any(key_fingerprint(corpus) == own for corpus in corpora):
        raise UsageError(
            f"no corpus in {store.url} was made with this MRCG_PSEUDONYM_KEY: set the key that made the pseudonyms"
        )
    if others:
        console.err.print(
            f"not searched, made with other keys: corpus {', '.join(others)}; run the command with those keys, too",
            highlight=False,
            soft_wrap=True,
        )


def _verify_receipt(store: Store, path: Path, as_json: bool) -> None:
    from mrcg.erasure.records import check_receipt, read_receipt
    from mrcg.privacy.signing import signer_from_environment
    from mrcg.privacy.suppression import suppressed

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
                f"genuine, signed with {signed_by}; {signed.receipt.scans} scans erased, no trace left in {store.url}"
            )
        return
    problems = {
        "its content does not match its signature": not verdict.genuine,
        "it was signed with another key": verdict.known_signer is False,
        f"erased data is still in {', '.join(verdict.left[:3])}": bool(verdict.left),
        f"removed versions are back: {', '.join(verdict.versions_back[:3])}": bool(verdict.versions_back),
        "its entries are missing from the suppression list": verdict.not_suppressed,
    }
    raise IntegrityError(
        f"{path}: {'; '.join(problem for problem, applies in problems.items() if applies)}: run `mrcg erase` again, "
        "restore the suppression list from a backup, or ask for the original receipt"
    )
