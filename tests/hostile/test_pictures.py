"""Pictures: every pixel as it is seen, or refused in one sentence."""

import io
import struct
import zlib

import corpus
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps
from test_people import draw as draw_people
from test_people import people, written

from xmem_utils.personas.dataset import to_views
from xmem_utils.personas.importing import import_folder
from xmem_utils.personas.pictures import read_picture

RED = (200, 30, 30)


def saved(path, image, fields):
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.get("options", {}).items()}
    if path.suffix == ".jpg":
        options.setdefault("quality", 100)
    image.save(path, **options)


def rgb(path, fields):
    profile = {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()}
    image = Image.new("RGB", fields.get("size", (40, 20)), RED)
    saved(path, image, {"options": {**fields.get("options", {}), **(profile if "profile" in fields else {})}})


def mode(path, fields):
    image = Image.new("RGB", (40, 20), tuple(fields.get("colour", RED)))
    if fields["mode"] == "P":
        image = image.quantize(4)
    elif fields["mode"] == "LAB":
        image = Image.new("LAB", (40, 20))
    saved(path, image.convert(fields["mode"]), fields)


def grey16(path, fields):
    values = np.full((20, 40), fields["value"], fields.get("order", "<u2"))
    saved(path, Image.fromarray(values), fields)
    if "patch" in fields:  # the photometric tag of the file as Pillow wrote it, set to 0
        data, tag = path.read_bytes(), struct.pack("<HHI", 262, 3, 1)
        path.write_bytes(data.replace(tag + b"\1\0", tag + b"\0\0"))


def array(path, fields):
    saved(path, Image.fromarray(np.full((20, 40), 1, fields["dtype"])), fields)


def alpha(path, fields):
    image = Image.new("RGBA", (40, 20), (*RED, fields["alpha"]))
    saved(path, image if fields["mode"] == "RGBA" else image.convert("LA"), fields)


def turned(path, fields):
    exif = Image.Exif()
    exif[0x0112] = fields["orientation"]
    image = Image.new("RGB", (40, 20), "white")
    image.paste(RED, (0, 0, 20, 10))
    image.save(path, exif=exif)


def frames(path, fields):
    every = [Image.new("RGB", (40, 20), c) for c in ("red", "green", "blue")]
    every[0].save(path, save_all=True, append_images=every[1:], **fields.get("options", {}))


def header(path, fields):
    """A PNG that promises many pixels and holds hardly any."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", *fields["size"], 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    )


def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))


def cut(path, fields):
    noise().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(fields["share"] * len(data))])


def write_bytes(path, fields):
    path.write_bytes(fields["text"].encode())


DRAW = {f.__name__: f for f in (rgb, mode, grey16, array, alpha, turned, frames, header, cut)} | {"bytes": write_bytes}


def folder_of(folder, fields):
    """The people of test_people.py, where the picture of the case is Ada's first, and again as the case says."""
    rows = people()
    draw_people(folder, rows)
    picture = folder / fields.get("file", "p.png")
    DRAW[fields["draw"]](picture, fields)
    with_picture = {"two people": [(0, picture), (4, picture)], "both splits": [(0, picture), (2, picture)]}
    other = folder / "other.bmp"
    if fields.get("folder") == "two files":
        with Image.open(picture) as image:
            image.save(other)
    for number, file in with_picture.get(fields.get("folder"), [(0, picture), *([(5, other)] * other.exists())]):
        rows[number]["file_name"] = file.name
    (folder / "metadata.csv").write_text(written(rows))
    return picture


@corpus.parametrized("pictures")
def test_pictures(case, witness, tmp_path):
    fields = case.given
    picture = folder_of(tmp_path, fields)
    result = witness(case, lambda: import_folder(tmp_path), tmp_path)
    if result is not None:
        seen = to_views(result[0], "train", "image")[0].content
        if "kept" in fields:
            assert read_picture(picture)[0] == picture.read_bytes()
        assert list(seen.size) == fields.get("size", [40, 20])
        if "pixel" in fields:
            rounded = 3 if picture.suffix == ".jpg" or fields.get("mode") == "YCbCr" else 0
            assert np.abs(np.subtract(seen.getpixel((0, 0)), fields["pixel"])).max() <= rounded


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of a broken TIFF
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "webp", "bmp"])
def test_any_damage_to_a_file_is_refused_in_one_sentence_or_leaves_a_picture(suffix, tmp_path):
    stream = io.BytesIO()
    noise().save(stream, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
    whole = stream.getvalue()

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(st.integers(0, len(whole) - 1), st.binary(min_size=1, max_size=20))
    def damaged(place, damage):
        file = tmp_path / f"p.{suffix}"
        file.write_bytes(whole[:place] + damage + whole[place + len(damage) :])
        try:
            data, picture = read_picture(file)
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < corpus.LONGEST
        else:
            with Image.open(io.BytesIO(data)) as again:
                assert np.array_equal(np.asarray(ImageOps.exif_transpose(again).convert("RGB")), np.asarray(picture))

    damaged()
