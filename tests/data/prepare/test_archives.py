import io
import os
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from aqtopo.data.prepare import archives
from aqtopo.data.prepare.archives import HourlyFile, Inventory, stamp_name, stamp_of
from tests.data.prepare.raw import write_archive

DAY = np.datetime64("2013-01-02T00", "h") + np.arange(24)


def found(folder: Path) -> list[HourlyFile]:
    return [file for file in Inventory.of(folder).read(DAY) if not file.ignored]


def passed_over(folder: Path) -> list[str]:
    inventory = Inventory.of(folder)
    members = [f"{file.where} {file.problem}" for file in inventory.read(DAY) if file.ignored]
    return [each.removeprefix(f"{folder}/") for each in [*inventory.ignored, *members]]


def test_file_names_encode_hours() -> None:
    assert stamp_of("folder/CN-Reanalysis2013010203.nc") == np.datetime64("2013-01-02T03")
    assert stamp_name(np.datetime64("2013-01-02T03", "h")) == "CN-Reanalysis2013010203.nc"
    assert stamp_of("d\\cn-reanalysis2013010203.NC") == np.datetime64("2013-01-02T03")
    assert stamp_of("CN-Reanalysis2013123124.nc") == np.datetime64("2014-01-01T00")
    for name in (
        "CN-Reanalysis2013010225.nc",
        "CN-Reanalysis20130102.nc",
        "CN-Reanalysis2013013203.nc",
        "CN-Reanalysis2013010203.nc.bak",
    ):
        assert stamp_of(name) is None


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tgz"])
@pytest.mark.parametrize("name", ["CN-Reanalysis20130102", "everything"])
def test_members_are_found_in_every_kind_of_archive(tmp_path: Path, suffix: str, name: str) -> None:
    members = {"d/CN-Reanalysis2013010203.nc": b"three", "d/CN-Reanalysis2013010300.nc": b"", "d/readme": b""}
    write_archive(tmp_path / f"{name}.{suffix}", members)
    (file,) = found(tmp_path)
    assert (file.stamp, file.content) == (DAY[3], b"three")


def test_an_archive_of_another_day_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "CN-Reanalysis20130103.zip").write_bytes(b"not even an archive")
    assert found(tmp_path) == []


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_member_names_outside_the_folder_write_nothing(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / "a" / "b"
    source.mkdir(parents=True)
    members = {"../../CN-Reanalysis2013010203.nc": b"x", "/CN-Reanalysis2013010204.nc": b"y"}
    write_archive(source / f"CN-Reanalysis20130102.{suffix}", members)
    before = sorted(tmp_path.rglob("*"))
    assert [file.content for file in found(source)] == [b"x", b"y"]
    assert sorted(tmp_path.rglob("*")) == before


def test_links_and_devices_are_skipped(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "CN-Reanalysis20130102.tar", "w") as tar:
        for kind, name in ((tarfile.SYMTYPE, "03"), (tarfile.LNKTYPE, "04"), (tarfile.FIFOTYPE, "05")):
            member = tarfile.TarInfo(f"CN-Reanalysis20130102{name}.nc")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    assert [(file.content, file.problem) for file in found(tmp_path)] == [(None, "is a link or a device")] * 3


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_a_member_above_the_maximum_size_is_not_read(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_BYTES", 10)
    write_archive(tmp_path / f"CN-Reanalysis20130102.{suffix}", {"CN-Reanalysis2013010203.nc": bytes(11)})
    (file,) = found(tmp_path)
    assert file.content is None
    assert "has 11 bytes, more than the maximum of 10" in file.problem


def test_large_files_and_pipes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_BYTES", 10)
    (tmp_path / "CN-Reanalysis2013010203.nc").write_bytes(bytes(11))
    os.mkfifo(tmp_path / "CN-Reanalysis2013010204.nc")  # opening it would block
    large, pipe = found(tmp_path)
    assert large.content is pipe.content is None
    assert "has 11 bytes, more than the maximum of 10" in large.problem
    assert pipe.problem == "is not a regular file"


def test_a_wrong_size_in_a_zip_header_does_not_exhaust_memory(tmp_path: Path) -> None:
    path, size = tmp_path / "CN-Reanalysis20130102.zip", 2**26
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("CN-Reanalysis2013010203.nc", bytes(size))
    raw = path.read_bytes()
    assert raw.count(struct.pack("<L", size)) == 2
    path.write_bytes(raw.replace(struct.pack("<L", size), struct.pack("<L", 1000)))
    tracemalloc.start()
    (file,) = found(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert file.content is None
    assert "CRC" in file.problem
    assert peak < size / 4


def test_bzip2_members_are_not_decompressed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "CN-Reanalysis20130102.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("CN-Reanalysis2013010203.nc", b"three")
    (file,) = found(tmp_path)
    assert file.content is None
    assert "is not compressed with deflate" in file.problem


def test_a_flipped_byte_in_a_zip_loses_one_hour(tmp_path: Path) -> None:
    path = tmp_path / "CN-Reanalysis20130102.zip"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("CN-Reanalysis2013010203.nc", b"three" * 100)
        archive.writestr("CN-Reanalysis2013010204.nc", b"four" * 100)
    damaged = bytearray(buffer.getvalue())
    damaged[damaged.index(b"three") + 7] ^= 1
    path.write_bytes(damaged)
    three, four = found(tmp_path)
    assert three.content is None
    assert "CRC" in three.problem
    assert four.content == b"four" * 100


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_a_truncated_archive_is_reported(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    members = {f"CN-Reanalysis20130102{hour:02d}.nc": rng.bytes(5000) for hour in range(24)}
    path = tmp_path / f"CN-Reanalysis20130102.{suffix}"
    write_archive(path, members)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    *whole, last = found(tmp_path)
    assert np.isnat(last.stamp)
    assert "is damaged" in last.problem
    assert all(file.content == members[stamp_name(file.stamp)] for file in whole)
    assert len(whole) == (pytest.approx(11, abs=2) if suffix == "tar" else 0)


MEMBERS = {stamp_name(stamp): bytes([number]) * 5000 for number, stamp in enumerate(DAY)}


def flipped(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 4
    path.write_bytes(raw)


@pytest.mark.parametrize("place", [-6, 0.3, 0.7], ids=["checksum", "first half", "second half"])
def test_no_member_of_a_gzip_file_with_a_wrong_checksum_is_used(tmp_path: Path, place: float) -> None:
    path = tmp_path / "CN-Reanalysis20130102.tar.gz"
    rng = np.random.default_rng(0)  # bytes that deflate only stores, so a flipped bit is valid
    write_archive(path, {name: rng.bytes(5000) for name in MEMBERS})
    flipped(path, int(place) if place < 0 else int(place * path.stat().st_size))
    (file,) = found(tmp_path)
    assert np.isnat(file.stamp)
    assert "is damaged" in file.problem


def test_a_damaged_header_in_a_tar_is_not_its_end(tmp_path: Path) -> None:
    path = tmp_path / "CN-Reanalysis20130102.tar"
    write_archive(path, MEMBERS)
    flipped(path, path.read_bytes().index(stamp_name(DAY[12]).encode()))
    *whole, last = found(tmp_path)
    assert [file.stamp for file in whole] == [*DAY[:12]]
    assert np.isnat(last.stamp)
    assert "is damaged (ReadError: no header and no end at byte" in last.problem


def test_a_tar_that_ends_between_two_members_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "CN-Reanalysis20130102.tar"
    write_archive(path, MEMBERS)
    with tarfile.open(path) as tar:
        end = tar.getmembers()[12].offset
    path.write_bytes(path.read_bytes()[:end])
    *whole, last = found(tmp_path)
    assert len(whole) == 12
    assert np.isnat(last.stamp)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_concatenated_archives_are_read_to_their_end(tmp_path: Path, suffix: str) -> None:
    names = list(MEMBERS)
    path, joined = tmp_path / f"CN-Reanalysis20130102.{suffix}", b""
    for chosen in (names[:5], names[5:6], names[6:]):
        write_archive(path, {name: MEMBERS[name] for name in chosen})
        joined += path.read_bytes()
    path.write_bytes(joined)
    assert {stamp_name(file.stamp): file.content for file in found(tmp_path)} == MEMBERS


@pytest.mark.parametrize(
    ("place", "number", "listed", "declared"), [(12, 0, 0, 3), (10, 4, 3, 4)], ids=["size", "number"]
)
def test_a_zip_that_lists_fewer_members_than_it_declares_is_damaged(
    tmp_path: Path, place: int, number: int, listed: int, declared: int
) -> None:
    path = tmp_path / "CN-Reanalysis20130102.zip"
    write_archive(path, {f"CN-Reanalysis20130102{hour:02}.nc": b"x" for hour in range(3)})
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\5\6") + place
    content[at : at + 2] = number.to_bytes(2, "little")
    path.write_bytes(content)
    *members, archive = found(tmp_path)
    assert len(members) == listed
    assert archive.problem == f"is damaged (BadZipFile: it lists {listed} of {declared} members)"


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_an_archive_without_members_is_damaged(tmp_path: Path, suffix: str) -> None:
    write_archive(tmp_path / f"CN-Reanalysis20130102.{suffix}", {})
    assert "members" in found(tmp_path)[0].problem


def test_a_folder_without_the_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds neither .* nor archives"):
        Inventory.of(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        Inventory.of(tmp_path / "nowhere")


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_hour_24_is_found_in_the_archive_of_the_day_before(tmp_path: Path, suffix: str) -> None:
    for day in (1, 2):
        names = [f"cn-reanalysis201301{day:02d}{hour:02d}.nc" for hour in range(1, 25)]
        write_archive(tmp_path / f"CN-Reanalysis201301{day:02d}.{suffix}", {n: n.encode() for n in names})
    files = {str(file.stamp): file.content for file in found(tmp_path)}
    assert len(files) == 24
    assert files["2013-01-02T00"] == b"cn-reanalysis2013010124.nc"
    assert passed_over(tmp_path) == []


def test_what_is_passed_over_is_named_with_the_reason(tmp_path: Path) -> None:
    members = {
        "d\\CN-Reanalysis2013010203.nc": b"three",
        "CN-Reanalysis2013010323.nc": b"",
        "CN-Reanalysis2013010401.nc": b"",
        "inner.zip": b"",
        "__MACOSX/._CN-Reanalysis2013010204.nc": b"",
    }
    write_archive(tmp_path / "CN-Reanalysis20130102.tar", members)
    (tmp_path / "CN-Reanalysis2013010300.nc.gz").touch()
    (tmp_path / "CN-Reanalysis20130103.zip.part").touch()
    (tmp_path / "._CN-Reanalysis20130103.zip").touch()
    for suffix in ("rar", "7z", "tar.bz2"):
        (tmp_path / f"CN-Reanalysis20130103.{suffix}").touch()
    (tmp_path / "linked").symlink_to(tmp_path.parent, target_is_directory=True)
    assert [file.content for file in found(tmp_path)] == [b"three"]
    packed = "is packed in a way that is not read: repack it as zip"
    assert set(passed_over(tmp_path)) == {
        "._CN-Reanalysis20130103.zip is a resource file of macOS",
        f"CN-Reanalysis2013010300.nc.gz {packed}",
        "CN-Reanalysis20130102.tar:CN-Reanalysis2013010323.nc is of another day than its archive",
        "CN-Reanalysis20130102.tar:CN-Reanalysis2013010401.nc is of another day than its archive",
        "CN-Reanalysis20130102.tar:__MACOSX/._CN-Reanalysis2013010204.nc is a resource file of macOS",
        "CN-Reanalysis20130102.tar:inner.zip is an archive in an archive: unpack the outer one",
        f"CN-Reanalysis20130103.7z {packed}",
        f"CN-Reanalysis20130103.rar {packed}",
        f"CN-Reanalysis20130103.tar.bz2 {packed}",
        "CN-Reanalysis20130103.zip.part is an unfinished download: download it again",
        "linked is a link to a folder, which is not followed",
    }


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("suffix", ["tar", "tgz"])
def test_a_header_that_would_fill_the_memory_is_not_read(tmp_path: Path, kind: bytes, suffix: str) -> None:
    size = archives.MAX_HEADER_BYTES + 1
    header = tarfile.TarInfo("large")
    header.type, header.size = kind, size
    path = tmp_path / f"CN-Reanalysis20130102.{suffix}"
    with tarfile.open(path, "w:gz" if suffix == "tgz" else "w") as tar:
        tar.addfile(tarfile.TarInfo("readme"))
        assert tar.fileobj is not None
        tar.fileobj.write(header.tobuf() + bytes(-(-size // 512) * 512))
    (file,) = found(tmp_path)
    assert file.content is None
    assert f"an extended header of {size} bytes, more than the maximum" in file.problem


def test_a_long_name_is_read(tmp_path: Path) -> None:
    folder = "/".join(["folder" * 9] * 9)
    write_archive(tmp_path / "CN-Reanalysis20130102.tar", {f"{folder}/CN-Reanalysis2013010203.nc": b"three"})
    assert [file.content for file in found(tmp_path)] == [b"three"]
