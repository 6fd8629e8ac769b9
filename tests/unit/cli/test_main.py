import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests import erasure_factories
from tests.factories import make_release, publish, tiny_config

from mrcg.cli.main import ORDER, main
from mrcg.corpus.reader import read_scans
from mrcg.corpus.sources import open_source, survey
from mrcg.metrics.report import Report
from mrcg.pipeline.plan import plan
from mrcg.privacy.pseudonyms import ENVIRONMENT as PSEUDONYM_KEY
from mrcg.privacy.pseudonyms import Pseudonyms
from mrcg.privacy.signing import ENVIRONMENT as SIGNING_KEY
from mrcg.privacy.signing import new_signing_key
from mrcg.releases.release import read_release
from mrcg.storage.attempts import begin
from mrcg.storage.store import Store


def run(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out = capsys.readouterr()
    return ended.value.code, out.out, out.err


@pytest.mark.parametrize("command", ["", "run", "query"])
def test_help_imports_neither_torch_nor_ray(command):
    code = (
        "import sys; from mrcg.cli.main import main\n"
        f"try: main({[command, '--help'] if command else ['--help']})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'ray', 'faiss', 'torchvision'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ORDER)
def test_every_command_has_help(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert "Usage" in out


def test_sample_writes_and_says_so(capsys, tmp_path):
    assert run(capsys, "sample", tmp_path / "x", "--images", 8)[:2] == (
        0,
        f"8 phantoms in 8 files in {tmp_path / 'x'} (8 written, 0 already there); "
        f"{tmp_path / 'x' / 'manifest.csv'} lists them with their lesions and can be a source, too\n",
    )
    code, out, _ = run(capsys, "sample", tmp_path / "x", "--images", 8, "--json")
    assert (code, json.loads(out)["written"]) == (0, 0)
    assert json.loads(out)["manifest"] == str(tmp_path / "x" / "manifest.csv")
    _, out, _ = run(capsys, "sample", tmp_path / "y", "--images", 8, "--format", "nifti", "--json")
    assert json.loads(out)["manifest"] is None


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["run", "--source", "nowhere", "--store", "s"], 1, "mrcg: --source nowhere: no such folder"),
        (
            ["run", "--source", ".", "--store", "s", "--set", "encoder.epoch=1"],
            2,
            "unknown key encoder.epoch; the nearest known key is encoder.epochs",
        ),
        (
            ["run", "--source", ".", "--store", "s", "--recipe", "none-such"],
            2,
            "no recipe none-such: use a shipped one (demo, ",
        ),
        (
            ["run", "--source", "tests", "--store", "s", "--set", "encoder.weights=w.safetensors"],
            1,
            "encoder.weights = w.safetensors: no such file",
        ),
        (["query", "no-image.png", "--store", "s"], 2, "no-image.png cannot be read: No such file"),
        (["query", "README.md"], 2, "give --url of a running service, or --store"),
        (
            ["query", "README.md", "--url", "http://127.0.0.1:9"],
            1,
            "cannot be reached (ConnectError): is `mrcg serve` running there?",
        ),
        (["releases", "show", "--store", "nothing-here"], 1, "has no release"),
        (["store", "show", "abc", "--store", "nothing-here"], 1, "no version in"),
        (
            ["serve", "--store", "s", "--host", "0.0.0.0"],
            2,
            "--host 0.0.0.0: without authentication only loopback is served",
        ),
        (["verify", "--store", "foo://x"], 2, "foo://x cannot be opened"),
        (["gc", "--store", "s", "--keep-releases", "0"], 2, "--keep-releases"),
        (["gc", "--store", "s", "--grace-days", "-1"], 2, "--grace-days"),
        (["plan", "--images", "many"], 2, "--images many: write a number such as 50_000_000"),
        (["plan", "--images", "0"], 2, "--images 0: write a number such as 50_000_000"),
        (["plan", "--images=9", "--kind=pq"], 2, "--kind pq: must be one of flat, hnsw, ivf_flat, ivf_sq, opq_ivf_pq"),
        (["plan", "--images=9", "--memory-per-node=9 XB"], 2, "--memory-per-node 9 XB: write a size such as 64GB"),
        (["plan", "--images=9", "--memory-per-node=1MB"], 2, "at least): raise index.node_bytes (--memory-per-node)"),
        (["plan", "--images", "9", "--recall", "1.5"], 2, "--recall"),
        (["releases", "diff", "1", "--store", "nothing-here"], 1, "has no release: `mrcg run` makes and promotes one"),
        (["releases", "promote", "abc", "--store", "nothing-here"], 1, "no version in"),
        (["releases", "rollback", "--store", "nothing-here"], 1, "no release before the current one"),
        (
            ["reindex", "--source", ".", "--store", "nothing-here"],
            1,
            "has no release: `mrcg run` makes and promotes one",
        ),
        (["reindex", "--store", "nothing-here"], 2, "--source"),
        (["erase", "--store", "s"], 2, "give exactly one of --patient ID, --image ID or --verify RECEIPT"),
        (
            ["erase", "--store", "s", "--patient", "a", "--image", "b"],
            2,
            "give exactly one of --patient ID, --image ID or",
        ),
        (
            ["erase", "--store", "s", "--image", "a"],
            2,
            "a receipt must be signed: create a key with `mrcg keys new --kind signing --out",
        ),
        (["erase", "--store", "s", "--verify", "none.json"], 2, "--verify none.json cannot be read: No such file"),
        (["erase", "--store", "s", "--verify", "README.md"], 1, "this is not a receipt of `mrcg erase`: give the file"),
        (["run"], 2, "--source"),
        (["nothing"], 2, "nothing"),
        (["store", "ls", "--store", "foo://x"], 2, "foo://x cannot be opened"),
        (["run", "--source", "tests", "--store", "tests/store"], 2, "is inside --source tests and would be ingested"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_line_with_an_exit_code(capsys, monkeypatch, tmp_path, words, code, line):
    got, _, err = run(capsys, *words)
    assert got == code
    assert line in " ".join(err.split())
    assert "Traceback" not in err


def test_debug_shows_the_traceback():
    done = subprocess.run(
        [sys.executable, "-c", "from mrcg.cli.main import main; main()", "releases", "show", "--store", "x", "--debug"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "NotFoundError" in done.stderr


def test_a_store_can_be_looked_at_searched_and_rolled_back(capsys, library_store, scans, tmp_path, monkeypatch):
    monkeypatch.setenv("MRCG_STORE", library_store.url)
    code, out, _ = run(capsys, "store", "ls", "--json")
    kinds = [entry["kind"] for entry in json.loads(out)]
    assert (code, len(kinds), set(kinds) >= {"corpus", "reports"}) == (0, 8, True)
    version = json.loads(out)[0]["version"]
    assert json.loads(run(capsys, "store", "show", version[:8], "--json")[1])["kind"] == "corpus"
    assert "images 96" in run(capsys, "store", "ls")[1].replace("\n", " ")
    assert version in run(capsys, "store", "show", f"corpus/{version}")[1]
    assert json.loads(run(capsys, "releases", "list", "--json")[1])[0]["number"] == 1
    assert "Releases" in run(capsys, "releases", "list")[1]
    assert "encoder" in run(capsys, "releases", "show")[1]
    code, _, err = run(capsys, "releases", "rollback")
    assert (code, "no release before the current one" in err) == (1, True)
    scan = sorted(scans.rglob("*.png"))[0]
    code, out, _ = run(capsys, "query", scan, "-k", 3, "--out", tmp_path / "hits.png", "--json")
    assert (code, len(json.loads(out)["hits"])) == (0, 3)
    assert (tmp_path / "hits.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = run(capsys, "query", scan, "-k", 999)
    assert (code, "k = 999: ask for 1 to 20 hits" in err) == (2, True)


def test_promote_by_hand(capsys, scans, store):
    release = make_release(store, scans)
    code, out, _ = run(capsys, "releases", "promote", release.report, "--store", store.url)
    assert (code, out) == (0, "release 1 already serves exactly these versions\n")


# A store that was released twice ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first(scans, tmp_path_factory):
    """A store as ``mrcg run`` makes it of a folder that names nobody."""
    store = Store(str(tmp_path_factory.mktemp("first") / "store"))
    erasure_factories.make_release(store, scans, tiny_config(), None)
    return store


@pytest.fixture
def released(first, tmp_path, monkeypatch):
    """A copy of it; the environment names it, and no keys."""
    shutil.copytree(first.root, tmp_path / "released")
    monkeypatch.setenv("MRCG_STORE", str(tmp_path / "released"))
    for name in (PSEUDONYM_KEY, SIGNING_KEY):
        monkeypatch.delenv(name, raising=False)
    return Store(str(tmp_path / "released"))


def another(store, scans, drop):
    """A report on the same models under other settings, with a MAP that is lower."""
    step = plan(tiny_config("evaluate.picture_queries=1"), survey(open_source(str(scans))), "none")[-1]
    old = store.artefact("reports", read_release(store).report)
    report = Report.model_validate_json(old.read_bytes("report.json"))
    worse = report.reranked.model_copy(update={"map": report.reranked.map - drop})
    served = report.served.model_copy(update={"map": report.served.map - drop})
    step = step.__class__(step.stage, step.version, step.settings, old.manifest.inputs)
    files = {"report.json": report.model_copy(update={"reranked": worse, "served": served}).model_dump_json().encode()}
    return publish(store, step, files, old.manifest.counts).version


def test_verify_hashes_everything_and_names_what_is_wrong(capsys, released):
    code, out, _ = run(capsys, "verify", "--json")
    found = json.loads(out)
    assert (code, found["sound"], found["versions"], found["problems"]) == (0, True, 8, [])
    code, out, _ = run(capsys, "verify")
    assert (code, f"8 versions, {found['files']} files, " in out) == (0, True)
    artefact = released.artefact("indexes", read_release(released).index)
    place = artefact.relative("index.json")
    released.write_bytes(place, released.read_bytes(place) + b" ")
    code, out, err = run(capsys, "verify")
    assert code == 1
    line = " ".join(err.split())
    assert "1 problems; the first:" in line
    assert f"{place} has" in line
    assert "restore the file, or remove indexes/" in line
    assert place in out.replace("\n", "")
    code, out, _ = run(capsys, "verify", "--json")
    assert (code, json.loads(out)["sound"], len(json.loads(out)["problems"])) == (1, False, 1)


def test_gc_says_what_would_go_and_then_removes_it(capsys, released, scans):
    newer = another(released, scans, 0.0)
    nothing = {"attempts": [], "versions": [], "files": [], "freed_bytes": 0, "dry_run": False}
    code, out, _ = run(capsys, "gc", "--json")
    assert (code, json.loads(out)) == (0, nothing), "it is young"
    with pytest.raises(ValueError, match="stopped"), begin(released, "corpus", "0" * 12):
        raise ValueError("stopped")
    code, out, _ = run(capsys, "gc", "--grace-days", 0, "--dry-run")
    assert code == 0
    assert f"would remove reports/{newer}" in out
    assert "1 versions, 1 abandoned attempts, 0 unreferenced files would be removed" in out
    assert released.has("reports", newer)
    code, out, _ = run(capsys, "gc", "--grace-days", 0, "--json")
    swept = json.loads(out)
    assert (code, swept["versions"], len(swept["attempts"]), swept["dry_run"]) == (0, [f"reports/{newer}"], 1, False)
    assert swept["freed_bytes"] > 0
    assert not released.has("reports", newer)
    assert (
        "0 versions, 0 abandoned attempts, 0 unreferenced files removed, 0.0 MB"
        in run(capsys, "gc", "--grace-days", 0)[1]
    )


def test_old_releases_hold_their_parts_until_they_need_not(capsys, released, scans):
    old = read_release(released).report
    assert run(capsys, "releases", "promote", another(released, scans, 0.0))[0] == 0
    assert json.loads(run(capsys, "gc", "--grace-days", 0, "--json")[1])["versions"] == []
    code, out, _ = run(capsys, "gc", "--grace-days", 0, "--keep-releases", 1)
    assert (code, f"removed reports/{old}" in out) == (0, True)
    code, _, err = run(capsys, "releases", "rollback")
    assert code == 1
    assert f"release 1 cannot serve again: reports/{old} is missing" in " ".join(err.split())
    assert "missing" in run(capsys, "releases", "list")[1]
    missing = [one["missing"] for one in json.loads(run(capsys, "releases", "list", "--json")[1])]
    assert missing == [[f"reports/{old}"], []]
    code, out, _ = run(capsys, "verify")
    assert (code, f"release 1 cannot be rolled back to: reports/{old} is missing" in out) == (0, True)


def test_promote_asks_the_gate_unless_it_is_told_not_to(capsys, released, scans):
    worse = another(released, scans, 0.05)
    code, out, _ = run(capsys, "releases", "promote", worse)
    assert (code, "gate: MAP" in out) == (0, True)
    code, out, _ = run(capsys, "releases", "promote", worse, "--json")
    assert (code, json.loads(out)["promoted"], json.loads(out)["release"]["number"]) == (0, False, 1)
    assert json.loads(run(capsys, "releases", "promote", worse, "--max-map-drop", 0.1, "--json")[1])["promoted"]
    assert run(capsys, "releases", "rollback")[1] == "release 3 is current: rolled back to 1\n"
    assert run(capsys, "releases", "promote", worse, "--no-gate")[1] == "release 4 is current\n"
    assert json.loads(run(capsys, "releases", "rollback", 1, "--json")[1])["number"] == 5


def test_releases_are_compared_down_to_their_settings(capsys, released, scans):
    assert run(capsys, "releases", "diff", 1)[1] == "releases 1 and 1 are identical\n"
    assert json.loads(run(capsys, "releases", "diff", 1, "--json")[1]) == []
    run(capsys, "releases", "promote", another(released, scans, 0.05), "--no-gate")
    changes = {one["what"]: one for one in json.loads(run(capsys, "releases", "diff", 1, "--json")[1])}
    assert set(changes) == {"reports", "reports evaluate", "reranked_map", "served_map"}
    assert '"picture_queries": 1' in changes["reports evaluate"]["after"]
    code, out, _ = run(capsys, "releases", "diff", 1, 2)
    assert (code, "Release 1 to 2" in out, "reranked_map" in out) == (0, True, True)
    code, _, err = run(capsys, "releases", "diff", 1, 7)
    assert (code, "has no release 7: `mrcg releases list` shows all releases" in " ".join(err.split())) == (1, True)


def test_a_store_without_a_release_says_how_to_get_one(capsys, tmp_path):
    code, out, _ = run(capsys, "releases", "list", "--store", tmp_path)
    assert (code, "has no release yet: `mrcg run` makes and promotes one" in out.replace("\n", " ")) == (0, True)
    assert run(capsys, "releases", "list", "--store", tmp_path, "--json")[:2] == (0, "[]\n")


# Reindex and erase ------------------------------------------------------------------------------------------------


def test_reindex_says_that_nothing_is_new(capsys, released, scans):
    line = "nothing to do: release 1 is up to date with this source\n"
    assert run(capsys, "reindex", "--source", scans)[:2] == (0, line)
    code, out, _ = run(capsys, "reindex", "--source", scans, "--json")
    assert (code, json.loads(out)) == (0, {"stages": [], "release": 1})


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (
            ["--set", "encoder.epochs=3"],
            2,
            "--set encoder.epochs=3: the models or the gallery depend on encoder.epochs; change it with `mrcg run`",
        ),
        (["--set", "index.kinds=flat"], 2, "unknown key index.kinds; the nearest known key is index.kind"),
        (["--set", "index.kind=tree"], 2, "index.kind = 'tree' is not allowed"),
        (["--promote", "perhaps"], 2, "perhaps"),
    ],
)
def test_reindex_refuses_what_it_cannot_do(capsys, released, scans, words, code, line):
    got, _, err = run(capsys, "reindex", "--source", scans, *words)
    assert (got, line in " ".join(err.split())) == (code, True)


@pytest.fixture
def signing(monkeypatch):
    monkeypatch.setenv(SIGNING_KEY, new_signing_key())


def test_a_patient_is_found_only_with_the_key(capsys, released, signing, monkeypatch, tmp_path):
    code, _, err = run(capsys, "erase", "--patient", "JANE")
    assert code == 2
    assert "--patient needs the key that the pseudonyms were made with: set MRCG_PSEUDONYM_KEY" in " ".join(err.split())
    monkeypatch.setenv(PSEUDONYM_KEY, "11" * 32)
    code, _, err = run(capsys, "erase", "--patient", " ")
    assert (code, "--patient is empty: give the patient id as in the source" in " ".join(err.split())) == (2, True)
    monkeypatch.setenv("MRCG_STORE", str(tmp_path / "keyed"))
    erasure_factories.write_patients(tmp_path / "scans", 16)
    erasure_factories.make_unreleased(
        Store(str(tmp_path / "keyed")), tmp_path / "scans", erasure_factories.config_of_patients()
    )
    code, _, err = run(capsys, "erase", "--patient", "JANE", "--here")
    assert code == 2
    assert "was made with this MRCG_PSEUDONYM_KEY: set the key that made the pseudonyms" in " ".join(err.split())
    # Where two keys were used, each finds its own corpora, and is told of the others'.
    other = Pseudonyms(bytes.fromhex("11" * 32))
    store, config = Store(str(tmp_path / "keyed")), erasure_factories.config_of_patients()
    erasure_factories.make_unreleased(store, tmp_path / "scans", config, other)
    code, out, err = run(capsys, "erase", "--patient", "PH-no_tumor-0-1", "--here")
    assert (code, "4 scans erased, 6 versions removed" in out.replace("\n", " ")) == (0, True)
    assert "not searched, made with other keys: corpus " in " ".join(err.split())


def test_an_image_is_erased_and_its_receipt_holds(capsys, released, signing, tmp_path):
    ident = read_scans(released.artefact("corpus", read_release(released).corpus))["image_id"][5].as_py()
    person = erasure_factories.person_of(Path(released.root), "image_id", ident)
    code, _, err = run(capsys, "erase", "--image", "cafe", "--here")
    assert (code, "has an image cafe: `mrcg query` shows ids" in " ".join(err.split())) == (1, True)
    code, out, _ = run(capsys, "erase", "--image", ident, "--here", "--out", tmp_path / "receipt")
    assert code == 0
    words = " ".join(out.split())
    assert "1 scans erased, 6 versions removed, release 2 is current" in words
    assert f"receipt: {released.url}/log/receipts/" in out
    assert erasure_factories.found(Path(released.root), person) == {}
    code, again, _ = run(capsys, "erase", "--image", ident, "--here", "--json")
    assert (code, json.loads(again)) == (0, json.loads((tmp_path / "receipt").read_text()))
    code, out, _ = run(capsys, "erase", "--verify", tmp_path / "receipt")
    assert code == 0
    assert "genuine, signed with your key; 1 scans erased, no trace left in" in " ".join(out.split())
    code, out, _ = run(capsys, "erase", "--verify", tmp_path / "receipt", "--json")
    assert (code, json.loads(out)["holds"], json.loads(out)["left"]) == (0, True, [])


def test_a_receipt_that_does_not_hold_says_why(capsys, released, signing, tmp_path, monkeypatch):
    store = Store(str(tmp_path / "keyed"))
    erasure_factories.write_patients(tmp_path / "scans", 16)
    erasure_factories.make_unreleased(store, tmp_path / "scans", erasure_factories.config_of_patients())
    monkeypatch.setenv("MRCG_STORE", store.url)
    monkeypatch.setenv(PSEUDONYM_KEY, bytes(range(32)).hex())
    shutil.copytree(store.root, tmp_path / "backup")
    path = tmp_path / "receipt"
    code, out, _ = run(capsys, "erase", "--patient", "PH-no_tumor-0-1", "--here", "--out", path)
    assert (code, "there is no release" in out) == (0, True)

    def refused():
        code, _, err = run(capsys, "erase", "--verify", path)
        assert code == 1
        as_json = run(capsys, "erase", "--verify", path, "--json")
        assert (as_json[0], json.loads(as_json[1])["holds"]) == (1, False)
        return " ".join(err.split())

    data = path.read_text()
    path.write_text(data.replace('"scans": 4', '"scans": 3'))
    assert (
        "its content does not match its signature: run `mrcg erase` again, restore the suppression list from a backup, or ask"
        in refused()
    )
    path.write_text(data)
    shutil.copytree(tmp_path / "backup" / "corpus", Path(store.root) / "corpus", dirs_exist_ok=True)
    line = refused()
    assert "erased data is still in corpus/" in line
    assert "removed versions are back: corpus/" in line
    assert run(capsys, "erase", "--patient", "PH-no_tumor-0-1", "--here")[0] == 0
    assert run(capsys, "erase", "--verify", path)[0] == 0
    monkeypatch.setenv(SIGNING_KEY, new_signing_key())
    assert "it was signed with another key" in refused()
    monkeypatch.delenv(SIGNING_KEY)
    code, out, _ = run(capsys, "erase", "--verify", path)
    assert (code, "signed with key " in out) == (0, True)
    shutil.rmtree(Path(store.root) / "log" / "suppression")
    assert "its entries are missing from the suppression list" in refused()
