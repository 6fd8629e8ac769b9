"""What libraries read by themselves: variables, the locale, modules of the working folder, services of clouds."""

import json
import os
import subprocess

import psutil
import pytest
from tests.clusters import ray_cluster
from tests.factories import MRCG

from mrcg.imaging.samples import SampleFormat, write_samples

pytestmark = pytest.mark.slow

#: Modules that workers, children and drivers import; imported from the working folder they leave a word.
BAITS = ("random", "faiss", "pydicom", "nibabel", "sitecustomize")
STRANGE = {
    "LC_ALL": "C", "LANG": "C", "PYTHONSTARTUP": "/no/such/file.py", "OMP_NUM_THREADS": "1", "OMP_PROC_BIND": "close",
    "AWS_PROFILE": "nobody", "AWS_CONFIG_FILE": "/no/such/file", "RAY_DEDUP_LOGS": "0", "HTTP_PROXY": "http://192.0.2.1:1",
}  # fmt: skip


def test_a_strange_environment_and_modules_beside_the_data_change_nothing(tmp_path):
    source = tmp_path / "scans"
    write_samples(source, 16, 1, SampleFormat.dicom)
    (source / "glioma_tumor").rename(source / "Gliom_groß")
    for name in BAITS:
        for folder in (tmp_path, source):
            (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write(__file__ + chr(10))\n")
    classes = "ingest.classes=[Gliom_groß,no_tumor,meningioma_tumor,pituitary_tumor]"
    words = (MRCG, "ingest", "--source", str(source), "--store", "store", "--set", classes, "--json")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "PYTHON"))}
    environment = {**inherited, **STRANGE, "MRCG_PSEUDONYM_KEY": "ab" * 32}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    counts = json.loads(done.stdout.decode())["stages"][0]["counts"]
    assert counts["classes"]["Gliom_groß"] == 4
    assert counts["images"] == 16
    assert not (tmp_path / "imported").exists(), (tmp_path / "imported").read_text()


def test_a_local_ray_starts_no_process_that_asks_clouds_where_it_runs():
    with ray_cluster():
        mine = [" ".join(one.cmdline()) for one in psutil.Process().children(recursive=True)]
        assert any("raylet" in words for words in mine)
        assert not [words for words in mine if "dashboard/dashboard.py" in words]
