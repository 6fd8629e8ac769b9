"""Pages in a real browser: what a name holds is read by a person, and never run."""

import subprocess

import pytest
from tests.tools import needs
from tests.unit.pages.test_escaping import Elements, of_audit, of_inventory, of_report

pytestmark = pytest.mark.slow

#: As a script and as an attribute, it would change the title.
NAME = "<script>document.title='taken'</script>\"><img src=x onerror=\"document.title='taken'\">"


def in_browser(page, folder):
    """The document as a browser understood it, after its scripts ran."""
    path = folder / "page.html"
    path.write_bytes(page)
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}",
    ]
    words = ["chromium", *options, "--virtual-time-budget=2000", "--dump-dom", path.as_uri()]
    done = subprocess.run(words, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout


@needs("chromium")
@pytest.mark.parametrize("page_of", [of_report, of_audit, of_inventory])
def test_a_name_with_html_is_text_in_a_browser(page_of, tmp_path):
    document = in_browser(page_of(NAME), tmp_path)
    seen, plain = Elements(document), Elements(in_browser(page_of("plain"), tmp_path))
    assert seen.tags == plain.tags
    assert NAME in "".join(seen.text)
    assert b"<title>taken" not in document
