"""What erasures are tested with: a scanner that shares nothing with ``mrcg.erasure.discovery``, and releases with patients."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import re
import shutil
import signal
import subprocess
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
from PIL import Image

from mrcg.config.settings import Config
from mrcg.corpus.listing import file_digests, known_files
from mrcg.corpus.reader import Corpus, read_scans
from mrcg.corpus.sources import Source, open_source, survey
from mrcg.corpus.splits import SPLITS, make_splits
from mrcg.encoder.spec import read_spec
from mrcg.evaluation.evaluate import evaluate
from mrcg.evaluation.known_items import search_known_items
from mrcg.execution.executor import LocalExecutor, silent
from mrcg.imaging.phantom import CLASSES
from mrcg.imaging.samples import SampleFormat, write_samples
from mrcg.pipeline.ancestry import ancestry_of, source_name
from mrcg.pipeline.plan import Step, open_inputs, plan
from mrcg.privacy.pseudonyms import Pseudonyms
from mrcg.privacy.signing import Signer
from mrcg.releases.release import Release, promote
from mrcg.stages.registry import pipeline_stages
from mrcg.storage import schemas
from mrcg.storage.attempts import begin
from mrcg.storage.catalog import all_manifests, remove_versions
from mrcg.storage.manifest import derive_version
from mrcg.storage.store import Store
from mrcg_jobs.erasure import Eraser, sweep_node_cache
from mrcg_jobs.runner import run_stages
from tests import factories
from tests.manifests import counts_of, make_manifest

#: Settings of a source of DICOM phantoms: folders of classes are named where a key is set.
PATIENTS = (f"ingest.classes=[{','.join(CLASSES)}]", "split.protocol=dedup", "index.kind=ivf_flat")
KEY = Pseudonyms(bytes(range(32)))
SIGNER = Signer(bytes(range(1, 33)))
#: What names a scan: those of the columns whose values no other scan has are looked for.
WORDS = ("image_id", "group_id", "cluster_id", "patient", "bare_id", "study", "series", "instance", "accession")
#: Sides that reports and previews draw scans in; a scan that is smaller is drawn as it is.
SIDES = (112, 256)


@dataclass(frozen=True)
class Person:
    """All that a store has of some scans, as it has to be gone: strings by what they are, vectors, pixels."""

    words: Mapping[str, frozenset[str]]
    vectors: tuple[np.ndarray[Any, Any], ...]
    pixels: tuple[np.ndarray[Any, Any], ...]

    def needles(self) -> dict[str, list[bytes]]:
        """Bytes that are looked for, by class."""
        found = {
            kind: [word.encode(code) for word in some for code in ("utf-8", "utf-16-le")]
            for kind, some in self.words.items()
        }
        found["fp16"] = [vector.astype("<f2").tobytes() for vector in self.vectors]
        found["fp32"] = [vector.astype("<f4").tobytes() for vector in self.vectors]
        # A few rows from the middle, where there is a head: borders are alike.
        found["pixels"] = [grey[len(grey) // 2 : len(grey) // 2 + 4].tobytes() for grey in self.pixels]
        return found

    def drawn(self) -> list[bytes]:
        """A row of pixels of each scan in each size that it is drawn in."""
        rows = []
        for grey in self.pixels:
            for side in SIDES:
                image = Image.fromarray(grey)
                image.thumbnail((side, side), Image.Resampling.LANCZOS)
                rows.append(np.asarray(image)[image.height // 2].tobytes())
        return rows


def person_of(folder: Path, column: str, value: str) -> Person:
    """All that is in a store of the scans whose column has a value, whichever version has it."""
    scans = pa.concat_tables([pq.read_table(path) for path in folder.glob("corpus/*/*/scans/*.parquet")]).to_pylist()
    mine = [row for row in scans if row[column] == value]
    ids = {row["image_id"] for row in mine}
    others = [row for row in scans if row["image_id"] not in ids]
    words = {
        name: frozenset({row[name] for row in mine if row.get(name)} - {row.get(name) for row in others})
        for name in WORDS
    }
    # Clusters that others are in bear the name of an image that goes.
    words["cluster_id"] |= ids & {row["cluster_id"] for row in scans}
    pixels = {
        row["image_id"]: np.frombuffer(row["pixels"], np.uint8).reshape(row["height"], row["width"])
        for path in folder.glob("corpus/*/*/images/*.parquet")
        for row in pq.read_table(path).to_pylist()
        if row["image_id"] in ids
    }
    vectors = [
        np.array(row["embedding"], dtype=np.float16)
        for path in folder.glob("embeddings/*/*/embeddings/*.arrow")
        for row in pa.ipc.open_file(path).read_all().to_pylist()
        if row["image_id"] in ids
    ]
    return Person(words, tuple(vectors), tuple(pixels.values()))


def found(folder: Path, person: Person) -> dict[str, set[str]]:
    """Files of a folder that hold something of somebody, by class of what they hold; paths are searched, too."""
    needles, drawn = person.needles(), person.drawn()
    hits: dict[str, set[str]] = defaultdict(set)
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        data = path.read_bytes() if path.is_file() else b""
        for piece in (name.encode(), data, *decoded(data, name)):
            for kind, some in needles.items():
                if any(one in piece for one in some):
                    hits[kind].add(name)
        if any(row in picture for picture in pictures(data) for row in drawn):
            hits["picture"].add(name)
    return dict(hits)


def is_drawn(folder: Path, raw: str, key: Pseudonyms) -> bool:
    """Whether a report of a store has a picture of one of a patient's scans."""
    return "picture" in found(folder / "reports", person_of(folder, "patient", pseudonym(raw, key)))


def decoded(data: bytes, name: str = "") -> Iterator[bytes]:
    """Every value of a table, an array or a JSON text, whatever its file is called: compression hides nothing."""
    if data[:4] == b"PAR1":
        yield from _columns(pq.read_table(pa.BufferReader(data)))
    elif data[:6] == b"ARROW1":
        yield from _columns(pa.ipc.open_file(pa.BufferReader(data)).read_all())
    elif data[:6] == b"\x93NUMPY" or data[:4] == b"PK\x03\x04":
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        yield from (one.tobytes() for one in (loaded.values() if hasattr(loaded, "values") else [loaded]))
    elif data[:1] in (b"{", b"["):
        try:
            yield json.dumps(json.loads(data), ensure_ascii=False).encode()
        except ValueError:
            # Vectors and codes may begin like this, too: their bytes are looked at as they are.
            if not name.endswith((".vectors.f16", ".faiss")):
                raise


def _columns(table: pa.Table) -> Iterator[bytes]:
    yield str(table.schema).encode()
    for column in table.columns:
        values = column.combine_chunks()
        while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
            values = values.flatten()
        if pa.types.is_floating(values.type):
            yield values.to_numpy(zero_copy_only=False).tobytes()
        else:
            yield b"\n".join(one if isinstance(one, bytes) else str(one).encode() for one in values.to_pylist())


def pictures(data: bytes) -> Iterator[bytes]:
    """Grey levels of a picture, row after row, and of those that a page has in itself."""
    inside = re.findall(rb"data:image/png;base64,([A-Za-z0-9+/=]+)", data)
    for one in ([data] if data[:4] == b"\x89PNG" else []) + [base64.b64decode(one) for one in inside]:
        yield Image.open(io.BytesIO(one)).convert("RGB").getchannel(0).tobytes()


def config_of_patients(*more: str) -> Config:
    """Tiny settings for a source of DICOM phantoms; its reports draw many scans."""
    return factories.tiny_config("evaluate.picture_queries=32", *PATIENTS, *more)


def write_patients(folder: Path, images: int, seed: int = 1) -> None:
    """A source of DICOM phantoms, four slices of a patient."""
    write_samples(folder, images, seed, SampleFormat.dicom)


def make_release(store: Store, folder: Path, config: Config, pseudonyms: Pseudonyms | None = KEY) -> Release:
    """All stages by library calls, as ``factories.make_release`` does, of a source that may name patients."""
    steps = made_corpus(store, folder, config, pseudonyms)
    table = read_scans(store.artefact("corpus", steps["corpus"].version))
    splits = schemas.to_parquet(make_splits(table, config.split, config.seed))
    factories.publish(store, steps["splits"], {SPLITS: splits}, {"protocol": config.split.protocol})
    factories._models(store, config, steps)
    encoder = store.artefact("encoders", steps["encoders"].version)
    counted(store, "encoders", encoder.manifest.version, fingerprint=read_spec(encoder)[1])
    inputs = open_inputs(store, steps["reports"])
    known = search_known_items(inputs, config.evaluate.known_items)
    report = evaluate(inputs, config.evaluate, {"recall": 1.0, "epochs": 0.0}, known=known)
    factories.publish(store, steps["reports"], report)
    return promote(store, steps["reports"].version, None).release


def made_corpus(
    store: Store, folder: Path, config: Config, pseudonyms: Pseudonyms | None = KEY, suppressed: Collection[str] = ()
) -> dict[str, Step]:
    """A corpus of a source that may name patients, and the steps from it to a report."""
    source = survey(open_source(str(folder)))
    steps = {
        one.stage.kind: one for one in plan(config, source, "none", ancestry_of(store, config, source, pseudonyms))
    }
    factories.publish_corpus(store, steps["corpus"], folder, config, pseudonyms, suppressed)
    counted(store, "corpus", steps["corpus"].version, source=source_name(source, pseudonyms))
    return steps


def make_unreleased(store: Store, folder: Path, config: Config, pseudonyms: Pseudonyms | None = KEY) -> dict[str, str]:
    """A version of each kind in a second: embeddings are drawn, models are empty, nothing is released."""
    steps = made_corpus(store, folder, config, pseudonyms)
    corpus = Corpus(store.artefact("corpus", steps["corpus"].version))
    splits = schemas.to_parquet(make_splits(corpus.scans, config.split, config.seed))
    factories.publish(store, steps["splits"], {SPLITS: splits}, {"protocol": config.split.protocol})
    factories.publish(store, steps["encoders"], {"model.safetensors": b"weights"}, {"fingerprint": "none"})
    # By their pixels, so that copies have one embedding.
    seeds = [int(one[:8], 16) for one in corpus.scans["pixel_hash"].to_pylist()]
    vectors = np.stack([np.random.default_rng(seed).normal(size=16) for seed in seeds]).astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 16)
    table = pa.table({"image_id": corpus.scans["image_id"], "embedding": column}, schema=schemas.embeddings(16))
    factories.publish(
        store, steps["embeddings"], factories.embeddings_by_file(corpus, table), {"dim": 16, "fingerprint": "none"}
    )
    factories.publish_index(store, config, steps["indexes"])
    for kind in ("graphs", "rerankers", "reports"):
        factories.publish(store, steps[kind], {"one.json": b"{}"})
    return {kind: step.version for kind, step in steps.items()}


def grown(store: Store, made: Mapping[str, str], config: Config, left: set[str]) -> dict[str, str]:
    """Corpus, embeddings and index grown from others after some files, by their stored keys, left the source."""
    base = store.artefact("corpus", made["corpus"])
    scans, known = read_scans(base), known_files(base)
    gone = [row for row in scans.to_pylist() if row["source_key"] in left]
    stay = known[~np.isin(known, file_digests([row["source_key"] for row in gone], [row["stamp"] for row in gone]))]
    generation = base.manifest.counts.generation + 1
    joined, out = factories.join([], factories.rules_of(config.ingest, KEY, generation=generation), base, stay)
    found = dict(made)

    def step(kind: str, inputs: Mapping[str, str], settings: Mapping[str, Any]) -> Step:
        (stage,) = [one for one in pipeline_stages() if one.kind == kind]
        found[kind] = derive_version(kind, settings, inputs)
        return Step(stage, found[kind], settings, inputs)

    settings = {**base.manifest.settings, "listing": f"without {sorted(left)}"}
    corpus = step("corpus", {"corpus": made["corpus"]}, settings)
    with begin(store, "corpus", corpus.version, corpus.inputs) as attempt:
        files = [one if one.folder else attempt.write(one.name, out.content[one.name]) for one in joined.files]
        counts = {**base.manifest.counts.stated(), **joined.counts.stated()}
        attempt.publish(make_manifest("corpus", corpus.version, settings, corpus.inputs, counts, files))
    told = {kind: store.manifest(kind, made[kind]).settings for kind in ("embeddings", "indexes")}
    embed = {"corpus": corpus.version, "encoders": made["encoders"], "embeddings": made["embeddings"]}
    steps = [step("embeddings", embed, told["embeddings"])]
    index = {"corpus": corpus.version, "embeddings": found["embeddings"], "indexes": made["indexes"]}
    steps.append(step("indexes", index, told["indexes"]))
    nowhere = Source("", "", 0, 0, False)
    assert all(one.ran for one in run_stages(store, config, nowhere, steps, None, lambda name: silent, LocalExecutor()))
    return found


def swept(store: Store, made: Mapping[str, str], later: Mapping[str, str]) -> None:
    """Remove the first versions, but for files that those which grew from them refer to."""
    gone = [(kind, version) for kind, version in made.items() if kind != "encoders"]
    gone = [key for key in gone if key[0] not in ("corpus", "embeddings", "indexes") or later[key[0]] != key[1]]
    remove_versions(store, gone, {key: one for key, one in all_manifests(store).items() if key not in gone})


def counted(store: Store, kind: str, version: str, **more: Any) -> None:
    """Let a manifest count more, or otherwise: the pipeline counts what ``factories`` does not."""
    manifest = store.manifest(kind, version)
    whole = manifest.model_copy(update={"counts": counts_of(kind, {**manifest.counts.stated(), **more})})
    store.write_bytes(f"{kind}/{version}/manifest.json", whole.to_bytes())


def eraser(store: Store, pseudonyms: Pseudonyms | None = KEY, **more: Any) -> Eraser:
    """An eraser that does all work in this process."""
    made = Eraser(store, pseudonyms, SIGNER, LocalExecutor(), None, lambda name: silent, sweep_node_cache)
    return dataclasses.replace(made, **more)


def pseudonym(raw: str, key: Pseudonyms = KEY) -> str:
    """Of a patient whose id nobody is named for, as a corpus has it."""
    return key.person("", key.name("patient", raw))


def scans_of(store: Store, corpus: str, *columns: str) -> list[tuple[Any, ...]]:
    """Columns of a corpus' scans, row by row."""
    table = read_scans(store.artefact("corpus", corpus))
    return list(zip(*(table[name].to_pylist() for name in columns), strict=True))


def kinds_of(paths: Iterable[str]) -> set[str]:
    """First folder of each path."""
    return {path.split("/", 1)[0] for path in paths}


def endings_of(paths: Sequence[str] | set[str]) -> set[str]:
    """What follows the last dot of each path."""
    return {path.rsplit(".", 1)[-1] for path in paths}


@contextlib.contextmanager
def serving(store: Store) -> Iterator[httpx.Client]:
    """A client of ``mrcg serve``, which has to end well on SIGTERM."""
    words = [factories.MRCG, "serve", "--store", store.url, "--port", str(factories.free_port()), "--json"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = next((line for line in process.stdout if line.startswith("{")), None)
        assert line is not None, process.communicate()[1]
        with httpx.Client(base_url=json.loads(line)["url"], timeout=60) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def hits_of(client: httpx.Client, scan: Path) -> list[str]:
    """Ids of the 20 images nearest to a file."""
    answer = client.post("/v1/search", files={"image": ("scan", scan.read_bytes())}, data={"k": "20"})
    assert answer.status_code == 200, answer.text
    return [hit["image_id"] for hit in answer.json()["hits"]]


def copied(scan: Path, path: Path, patient: str, **values: str) -> None:
    """A DICOM file with the same pixels, of another patient."""
    dataset = pydicom.dcmread(scan)
    dataset.PatientID = patient
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "AccessionNumber"):
        setattr(dataset, name, values.get(name, f"1.2.{len(patient)}.{len(name)}"))
    dataset.save_as(path, enforce_file_format=True)


def restored(store: Store, backup: Path, *parts: str) -> None:
    """Bring parts of a store back from a copy."""
    for part in parts:
        for path in (backup / part).rglob("*") if (backup / part).is_dir() else [backup / part]:
            if path.is_file():
                target = Path(store.root) / path.relative_to(backup)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
