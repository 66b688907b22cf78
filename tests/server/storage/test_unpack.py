"""Archives as people and attackers make them: what comes out is below the folder, bounded, and whole, or nothing is."""

import gzip
import io
import os
import stat
import struct
import tarfile
import unicodedata
import zipfile
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import FetchFailed
from server.storage import unpack
from server.storage.bring import Options, get
from server.storage.unpack import directory_size, is_archive, safe_name, stem

NAMES = [
    ("model.onnx", "model.onnx"),
    ("./model.onnx", "model.onnx"),
    ("a//b/./c", "a/b/c"),
    ("a/b/", "a/b"),
    ("./", ""),
    ("mu\u0308ll.onnx", "müll.onnx"),
    ("..a/b..", "..a/b.."),
]


@pytest.mark.parametrize(("name", "expected"), NAMES)
def test_a_plain_name_becomes_a_relative_path(name, expected):
    assert safe_name(name) == expected


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../x", "a/../../x", "a/..", "..", "//x", "C:\\x", "c:x", "..\\x", "a\\..\\b", "a\0b", "a\nb", "\udc80", "x" * 251, "é" * 126, "d/" * 600 + "x"],
)  # fmt: skip
def test_any_other_name_is_refused(name):
    with pytest.raises(ValueError):
        safe_name(name)


@given(st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "", "a", "/", "~", "\\"]), max_size=6).map("/".join))
def test_no_name_leads_out(name):
    try:
        path = safe_name(name)
    except ValueError:
        return
    assert os.path.normpath(f"/folder/{path}").startswith("/folder")
    assert ".." not in path.split("/")
    assert path == unicodedata.normalize("NFC", path)


@pytest.mark.parametrize(
    ("name", "packed", "plain"),
    [
        ("m.zip", True, "m"),
        ("m.TAR.GZ", True, "m"),
        ("m.tgz", True, "m"),
        ("m.v2.tar", True, "m.v2"),
        ("m.onnx", False, "m.onnx"),
        ("m.skops", False, "m.skops"),
        ("m.gz", False, "m.gz"),
        (".zip", True, "model"),
    ],
)
def test_an_archive_is_known_by_its_name(name, packed, plain):
    assert is_archive(name) is packed
    assert stem(name) == plain


@pytest.mark.parametrize("name", ["m.tar.zst", "m.tar.bz2", "m.tar.xz", "m.tbz2", "m.7z", "m.rar"])
def test_archives_that_are_not_unpacked_are_named(name):
    with pytest.raises(FetchFailed, match="is not unpacked; pack the model as .tar.gz") as caught:
        is_archive(name)
    assert caught.value.reason == "BadArchive"


# whole archives, through `get`: so that what is left on the disk is looked at too


def tar(*members, packed=True, **options) -> bytes:
    """Members are names with content, or TarInfos (with the content in `data`)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz" if packed else "w", **options) as archive:
        for member, data in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            if info.isreg():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(*members, **options) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for member, data in members:
            archive.writestr(member, data)
    return out.getvalue()


def special(name: str, kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


class Place:
    """A folder to unpack into, and all around it that must stay as it is."""

    def __init__(self, path) -> None:
        self.path, self.target = path, path / "a" / "b" / "target"

    def unpack(self, name: str, content: bytes, **options):
        archive = self.path / name
        archive.write_bytes(content)
        try:
            return get(str(archive), self.target, Options(**options))
        finally:
            archive.unlink()

    def files(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.target)): p.read_bytes() for p in self.target.rglob("*") if p.is_file()}

    def outside(self) -> set[str]:
        return {str(p) for p in self.path.rglob("*") if not p.is_relative_to(self.target)} - {
            str(self.path / "a"),
            str(self.path / "a" / "b"),
        }


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


FILES = {"saved_model.pb": b"graph", "variables/variables.index": b"index", "variables/empty": b""}
GOOD = {
    "m.zip": zipped(*FILES.items()),
    "m.tar": tar(*FILES.items(), packed=False),
    "m.tar.gz": tar(*FILES.items()),
    "m.tgz": tar((special("./", tarfile.DIRTYPE), b""), *((f"./{n}", d) for n, d in FILES.items()), format=tarfile.GNU_FORMAT),
    "pax.tgz": tar(*FILES.items(), format=tarfile.PAX_FORMAT, pax_headers={"comment": "x" * 1000}),
    # tar czf called .tar, and tar cf called .tar.gz
    "gz.tar": tar(*FILES.items()),
    "plain.tar.gz": tar(*FILES.items(), packed=False),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_an_archive_is_unpacked_into_the_folder(place, name):
    found = place.unpack(name, GOOD[name])
    assert place.files() == FILES
    assert found.path == place.target
    assert found.name == stem(name)
    assert place.outside() == set()
    assert found.digest == place.unpack("other.zip", GOOD["m.zip"]).digest


@pytest.mark.parametrize("pack", [zipped, tar], ids=["zip", "tar"])
def test_an_archive_of_one_folder_is_that_folder(place, pack):
    name = "m.zip" if pack is zipped else "m.tar"
    found = place.unpack(
        name, pack(("iris/model.onnx", b"x"), ("iris/notes", b"y"), ("__MACOSX/iris/._model.onnx", b"z"), (".DS_Store", b"z"))
    )
    assert found.path == place.target / "iris"
    assert found.name == "iris"
    versions = place.unpack(name, pack(("1/saved_model.pb", b"x")))
    assert versions.path == place.target
    assert versions.name == "m"


def test_what_was_unpacked_before_is_replaced(place):
    place.unpack("m.zip", zipped(("iris/model.onnx", b"old"), ("iris/gone", b"")))
    place.unpack("m.zip", zipped(("iris/model.onnx", b"new")))
    assert place.files() == {"iris/model.onnx": b"new"}


HUGE = tarfile.TarInfo("huge")
HUGE.size = 1 << 50
NEGATIVE = tarfile.TarInfo("negative")
ZEROS = bytes(4 << 20)
RANDOM = os.urandom(20_000)


def long_header(size: int) -> bytes:
    """A tar whose member says that its name is `size` bytes long."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))


def encrypted() -> bytes:
    data = bytearray(zipped(("m.onnx", b"x")))
    at = data.rindex(b"PK\x01\x02")
    data[at + 8] |= 1
    return bytes(data)


def before_the_beginning() -> bytes:
    """A zip whose list of members is said to lie further back than it does, and so its member before the file."""
    made = bytearray(zipped(("m", b"x")))
    at = len(made) - 22 + 16
    struct.pack_into("<L", made, at, struct.unpack_from("<L", made, at)[0] + 100)
    return bytes(made)


def overlapping() -> bytes:
    """A zip whose list names one compressed file many times: small, and endless when unpacked."""
    data = zipped(("0" * 8, ZEROS))
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entry = data[start:end]
    many = b"".join(entry.replace(b"0" * 8, b"%08d" % n) for n in range(2000))
    tail = bytearray(data[end:])
    struct.pack_into("<HHLL", tail, 8, 2000, 2000, len(many), start)
    return data[:start] + many + bytes(tail)


BAD = {
    "zip slip": ("m.zip", zipped(("../../evil", b"x")), "the name '../../evil'"),
    "zip absolute": ("m.zip", zipped(("/tmp/evil", b"x")), "it is absolute"),
    "zip of windows": ("m.zip", zipped(("..\\..\\evil", b"x")), "the name"),
    "zip link": ("m.zip", zipped((zip_link("m.onnx"), b"/etc/passwd")), "a link or a device (m.onnx)"),
    "zip twice": ("m.zip", zipped(("mu\u0308.onnx", b"x"), ("mü.onnx", b"y")), "twice"),
    "zip file in file": ("m.zip", zipped(("a", b"x"), ("a/b", b"y")), "lie beside the rest"),
    "zip bomb": ("m.zip", zipped(("zeros", ZEROS)), "grows more than 100 times"),
    "zip overlapping": ("m.zip", overlapping(), "grows more than 100 times"),
    "zip before its beginning": ("m.zip", before_the_beginning(), "a place outside of itself"),
    "zip encrypted": ("m.zip", encrypted(), "encrypted"),
    "zip with lzma": ("m.zip", zipped(("m", b"x"), compresslevel=None).replace(b"\x08\x00", b"\x0e\x00"), "in a way that is not read"),
    "zip members": ("m.zip", zipped(*((str(n), b"") for n in range(10_001))), "more than 10000 members"),
    "zip of nothing": ("m.zip", zipped(), "holds no files"),
    "zip cut short": ("m.zip", zipped(("m", RANDOM))[:-100], "damaged"),
    "zip with other bytes": ("m.zip", zipped(("m", RANDOM)).replace(RANDOM[:50], bytes(50)), "damaged"),
    "no archive": ("m.zip", b"\x08\x07onnx" * 200, "damaged, or no archive"),
    "a web page": ("m.tar.gz", b"<!doctype html><title>Log in</title>" * 40, "damaged, or no archive"),
    "tar slip": ("m.tgz", tar(("../../evil", b"x")), "the name '../../evil'"),
    "tar absolute": ("m.tgz", tar(("/tmp/evil", b"x")), "it is absolute"),
    "tar symlink": ("m.tgz", tar((special("m.onnx", tarfile.SYMTYPE), b"")), "a link, a device"),
    "tar hard link": ("m.tgz", tar((special("m.onnx", tarfile.LNKTYPE), b"")), "a link, a device"),
    "tar link, then through it": ("m.tgz", tar((special("d", tarfile.SYMTYPE, "/tmp"), b""), ("d/evil", b"x")), "a link, a device"),
    "tar pipe": ("m.tgz", tar((special("m.onnx", tarfile.FIFOTYPE), b"")), "a link, a device"),
    "tar device": ("m.tgz", tar((special("m.onnx", tarfile.CHRTYPE), b"")), "a link, a device"),
    "tar twice": ("m.tgz", tar(("m", b"x"), ("./m", b"y")), "twice"),
    "tar file in file": ("m.tgz", tar(("a", b"x"), ("a/b", b"y")), "lie beside the rest"),
    "tar folder over file": ("m.tgz", tar(("a/b", b"y"), ("a", b"x")), "lie beside the rest"),
    "tar bomb": ("m.tgz", tar(("zeros", ZEROS)), "grows more than 100 times"),
    "tar huge": ("m.tar", HUGE.tobuf(tarfile.GNU_FORMAT) + bytes(2048), "unpacks to more than"),
    "tar with a long header": ("m.tgz", long_header(1 << 33), "has a header of"),
    "tar members": ("m.tgz", tar(*((special(f"{n}/", tarfile.DIRTYPE), b"") for n in range(10_001))), "more than 10000 members"),
    "tar of nothing": ("m.tgz", tar((special("d/", tarfile.DIRTYPE), b"")), "holds no files"),
    "tar cut in a file": ("m.tar", tar(("m", RANDOM), packed=False)[:10_000], "damaged"),
    "tar cut after a file": ("m.tar", tar(("m", bytes(512)), packed=False)[:1024], "its end is missing"),
    "tar with a broken header": ("m.tar", tar(("m", b"x"), packed=False)[:1024] + b"\x01" * 10_240, "its end is missing"),
    "tar.gz cut short": ("m.tgz", tar(("m", RANDOM))[:-100], "damaged"),
    "tar.gz with other bytes": ("m.tgz", tar(("m", RANDOM))[:-8] + bytes(8), "damaged"),
    "tar.gz that goes on": ("m.tgz", tar(("m", b"x")) + gzip.compress(bytes(80 << 20)), "much larger than the files in it"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_archive_leaves_nothing(place, case):
    name, content, says = BAD[case]
    with pytest.raises(FetchFailed) as caught:
        place.unpack(name, content)
    assert says in str(caught.value)
    assert caught.value.reason == ("TooLarge" if case == "tar huge" else "BadArchive")
    assert list(place.target.iterdir()) == []
    assert place.outside() == set()


def test_a_small_archive_of_zeros_may_grow(place):
    place.unpack("m.zip", zipped(("zeros", bytes(1 << 20))))
    place.unpack("m.tgz", tar(("zeros", bytes(1 << 20))))
    assert place.files() == {"zeros": bytes(1 << 20)}


@pytest.mark.parametrize(("name", "pack"), [("m.zip", zipped), ("m.tar", tar)])
def test_what_is_unpacked_is_bounded_to_the_byte(place, name, pack):
    content = pack(("a", RANDOM), ("b", bytes(20_000)))
    assert place.unpack(name, content, max_bytes=40_000).size == 40_000
    with pytest.raises(FetchFailed, match="unpacks to more than 39999 bytes") as caught:
        place.unpack(name, content, max_bytes=39_999)
    assert caught.value.reason == "TooLarge"


@settings(max_examples=60)
@given(st.binary(max_size=200), st.integers(0, 4000), st.sampled_from(["m.zip", "m.tar", "m.tgz"]))
def test_no_bytes_in_an_archive_make_anything_else_than_a_refusal(tmp_path_factory, junk, at, name):
    place = Place(tmp_path_factory.mktemp("junk"))
    at %= len(GOOD[name])
    with suppress(FetchFailed):
        place.unpack(name, GOOD[name][:at] + junk + GOOD[name][at + len(junk) :])
    assert place.outside() == set()


MEMBER = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=12) | st.lists(
    st.sampled_from(["..", ".", "", "a", "b", "tmp", "\\", "C:"]), min_size=1, max_size=5
).map("/".join)


@settings(max_examples=60)
@given(st.lists(MEMBER, min_size=1, max_size=4, unique=True), st.booleans())
def test_archives_of_any_names_never_write_outside(tmp_path_factory, names, as_zip):
    # zipfile writes no more of a name than stands before a NUL, and no empty one
    names = [n.partition("\0")[0] or "x" for n in names] if as_zip else names
    place, members = Place(tmp_path_factory.mktemp("names")), [(name, b"x") for name in dict.fromkeys(names)]
    content = zipped(*members) if as_zip else tar(*members, format=tarfile.PAX_FORMAT)
    try:
        place.unpack("m.zip" if as_zip else "m.tar", content)
        assert place.files()
    except FetchFailed:
        assert list(place.target.iterdir()) == []
    assert place.outside() == set()


def test_the_length_of_a_zips_list_is_read_where_zipfile_reads_it():
    plain = zipped(("a", b"x"))
    assert directory_size(plain) == 47
    assert directory_size(zipped(("a", b"x")) + b"") == 47
    with_comment = io.BytesIO()
    with zipfile.ZipFile(with_comment, "w") as archive:
        archive.writestr("a", b"x")
        archive.comment = b"PK comment"
    assert directory_size(with_comment.getvalue()) == 47
    large = struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, 1 << 40, 0)
    large += struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)
    assert directory_size(large + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 0xFFFFFFFF, 0, 0)) == 1 << 40
    assert directory_size(b"nothing") == 0


def test_a_zip_with_a_list_that_fills_the_memory_is_refused_before_it_is_read(place):
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 5 << 20, 0, 0)
    with pytest.raises(FetchFailed, match="too long a list of members"):
        place.unpack("m.zip", b"PK\x03\x04" + bytes(5 << 20) + end)


def test_a_tar_is_read_forwards_once(tmp_path):
    """gzip starts from the beginning for every step back."""
    archive = tmp_path / "m.tgz"
    archive.write_bytes(tar(*((f"f{n}", RANDOM) for n in range(50))))
    seen = [len(b"".join(pieces)) for _, pieces in unpack.members(archive, "m.tgz", 10 << 20)]
    assert seen == [20_000] * 50
