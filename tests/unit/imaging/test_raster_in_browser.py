"""Pictures are read as a browser shows them on a black page."""

import base64
import io
import json
import re
import struct
import subprocess
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms
from tests.tools import needs

from mrcg.config.settings import ReadSettings
from mrcg.imaging.readers import read

pytestmark = pytest.mark.slow

PAGE = """<!DOCTYPE html><pre></pre><script>
async function shown(source) {
  const image = new Image();
  await new Promise(loaded => { image.onload = loaded; image.src = source; });
  const canvas = document.createElement('canvas');
  canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
  const context = canvas.getContext('2d');
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0);
  return [canvas.height, canvas.width, ...context.getImageData(0, 0, canvas.width, canvas.height).data];
}
(async () => {
  const found = {};
  for (const [name, source] of Object.entries(SOURCES)) found[name] = await shown(source);
  document.querySelector('pre').textContent = JSON.stringify(found);
})().catch(error => { document.querySelector('pre').textContent = error; });
</script>"""


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def turned(image, kind, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return saved(image, kind, exif=exif)


def with_chunk(png, name, content):
    """A PNG with another chunk after its header."""
    chunk = name + content
    return png[:33] + struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]


def pictures():
    """A smooth picture in every form that viewers show in different ways, by name."""
    grey = Image.fromarray(np.add.outer(np.arange(40) * 3, np.arange(60) * 2).astype(np.uint8))
    colour = Image.merge("RGB", [grey, grey.point(lambda level: level // 2), grey.point(lambda level: 255 - level)])
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 60).astype(np.uint8), (40, 1)))
    palette = colour.quantize(16)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # Not WebP with EXIF data: Chromium does not turn it, Pillow and we do (test_raster).
    return {
        "grey": saved(grey, "PNG"),
        "colour": saved(colour, "PNG"),
        **{f"{kind} turned {n}": turned(grey, kind, n) for kind in ("JPEG", "PNG") for n in (3, 6, 8)},
        "alpha": saved(Image.merge("RGBA", [*colour.split(), alpha]), "PNG"),
        "grey with alpha": saved(Image.merge("LA", [grey, alpha]), "PNG"),
        "palette": saved(palette, "PNG"),
        "palette with a transparent colour": saved(palette, "PNG", transparency=3),
        "one bit": saved(grey.convert("1"), "PNG"),
        "linear": with_chunk(saved(grey, "PNG"), b"gAMA", struct.pack(">I", 100_000)),
        "profile": saved(colour, "PNG", icc_profile=srgb),
        "CMYK": saved(colour.convert("CMYK"), "JPEG", quality=95),
        "lossless": saved(colour, "WEBP", lossless=True),
        "bitmap": saved(colour, "BMP"),
    }


@needs("chromium")
def test_pictures_look_as_in_a_browser(tmp_path):
    made = pictures()
    sources = {name: f"data:image/png;base64,{base64.b64encode(data).decode()}" for name, data in made.items()}
    page = tmp_path / "page.html"
    page.write_text(PAGE.replace("SOURCES", json.dumps(sources)))
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-color-profile=srgb")
    words = (
        "chromium",
        *options,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=5000",
        "--dump-dom",
    )
    done = subprocess.run((*words, page.as_uri()), capture_output=True, timeout=120, check=True)
    found = json.loads(re.search(r"<pre>(\{.*\})</pre>", done.stdout.decode())[1])
    assert set(found) == set(made)
    differences = {}
    for name, (height, width, *levels) in found.items():
        rgba = np.array(levels, np.uint8).reshape(height, width, 4)
        expected = np.asarray(Image.fromarray(rgba[:, :, :3]).convert("L"), int)
        (read_as,) = read(made[name], ReadSettings(min_side=8)).slices
        assert read_as.pixels.shape == (height, width), name
        differences[name] = int(np.abs(read_as.pixels - expected).max())
    # Browsers round lossy pictures and gamma in their own ways.
    assert {name: most for name, most in differences.items() if most > 4} == {}
