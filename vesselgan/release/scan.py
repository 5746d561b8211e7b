"""The search of every byte of a release for what names a patient, a place or a person.

Names of files, texts and JSON are read as texts. A NIfTI file is unpacked: it must be to the byte what `write_volume`
makes of its voxels on the synthetic grid, with one description. In binary content every run of MIN_RUN printable
characters is read as text. Terms are matched as whole words, upper and lower case alike.
"""

import json
import re
import struct
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from vesselgan.core.errors import PrivacyError
from vesselgan.formats.volumes import volume_bytes
from vesselgan.release.identities import Identities

MIN_RUN = 6
NIFTI_HEADER = nib.nifti1.header_dtype
GZIP_FLAGS, GZIP_TIME = 3, slice(4, 8)
"""Where a gzip header says which fields follow, such as a file's name, and when it was packed."""
_RUN = re.compile(rb"[\x20-\x7e]{%d,}" % MIN_RUN)
_PATH = re.compile(
    r"(?<![\w/.<)\]~-])(?:/[\w.@+~-]+){2,}|file:/+\w|(?<!\w)[A-Za-z]:\\\w|(?<![\w\\])\\\\\w+\\\w|(?<!\w)~/\w"
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_MONTHS = "jan jän ene gen sty feb fev fév lut mar mär mrz maa apr avr abr kwi may mai maj mag mei jun jui giu cze "
_MONTHS += "jul lug lip aug aoû aou ago sie sep set wrz oct okt ott out paź nov lis dec dez déc dic gru"
"""How months begin in English, German, French, Italian, Spanish, Portuguese, Dutch and Polish."""
_YEAR, _NAME = "(?:19|20)[0-9]{2}", rf"(?i:{'|'.join(_MONTHS.split())})[^\W\d_]*"


def _dates(day: str, month: str, separator: str) -> list[str]:
    return [separator.join(order) for order in ((_YEAR, month, day), (day, month, _YEAR), (month, day, _YEAR))]


_COMPACT = _dates("(?:0[1-9]|[12][0-9]|3[01])", "(?:0[1-9]|1[0-2])", "")
_SEPARATED = [
    date
    for separator in ("-", r"\.", "/", "_")
    for date in _dates("(?:0?[1-9]|[12][0-9]|3[01])", "(?:0?[1-9]|1[0-2])", separator)
]
_GAP = "[-./, ]{1,2}(?:del? )?"
_SEPARATED += [_GAP.join(order) for order in (("[0-9]{1,2}", _NAME, _YEAR), (_NAME, "[0-9]{1,2}", _YEAR))]
# Digits alone stand in hashes and fractions too. A T opens the time of day.
_DATE = re.compile(
    rf"(?<![0-9A-Za-z.])(?:{'|'.join(_COMPACT)})(?![0-9A-SU-Za-z])|(?<![0-9])(?:{'|'.join(_SEPARATED)})(?![0-9])"
)


@dataclass(frozen=True)
class Hit:
    file: str
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}: {self.kind}, {self.text!r}"


@dataclass(frozen=True)
class Scan:
    """What is searched for, and what may stand in a release."""

    identities: Identities
    affine: np.ndarray
    """Of every synthetic pair."""
    description: str
    """The one text of a NIfTI header."""
    date: str
    """The release's own, as ISO 8601."""

    def check(self, folder: Path) -> int:
        """Returns how many files were searched; raises PrivacyError, naming the first hits."""
        paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
        hits = [hit for path in paths for hit in self.hits_of(path, str(path.relative_to(folder)))]
        if hits:
            more = f" and {len(hits) - 5} more" if len(hits) > 5 else ""
            raise PrivacyError(
                f"nothing was released: {'; '.join(map(str, hits[:5]))}{more}. Remove it where it comes from (name, "
                "reason, licence, run), then release again"
            )
        return len(paths)

    def hits_of(self, path: Path, name: str) -> Iterator[Hit]:
        """name: below the release's folder."""
        yield from self._in_text(name, name)
        if path.is_symlink():
            yield Hit(name, "a link", str(path.readlink()))
            return
        content = path.read_bytes()
        if name.endswith(".gz"):
            if content[GZIP_FLAGS] or any(content[GZIP_TIME]):
                yield Hit(name, "a name or a time in the gzip header", content[:64].hex())
            unpacking = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
            content = unpacking.decompress(content)
            if unpacking.unused_data:
                yield Hit(name, "bytes behind the gzip stream", unpacking.unused_data[:64].hex())
        if name.removesuffix(".gz").endswith(".nii"):
            yield from self._in_nifti(content, name)
            yield from self._in_binary(content, name)
        elif name.endswith(".safetensors"):
            length = struct.unpack("<Q", content[:8])[0]
            yield from self._in_text(content[8 : 8 + length].decode("utf-8", "replace"), name)
            yield from self._in_binary(content[8 + length :], name)
        else:
            yield from self._in_file_of_text(content, name)

    def _in_file_of_text(self, content: bytes, name: str) -> Iterator[Hit]:
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            yield Hit(name, "neither text nor a format of this release", content[:16].hex())
            return
        if name.endswith(".json"):  # escapes hide what they spell
            text += "\n" + json.dumps(json.loads(text), ensure_ascii=False).replace("\\n", "\n")
        yield from self._in_text(text, name)

    def _in_binary(self, content: bytes, name: str) -> Iterator[Hit]:
        runs = "\n".join(run.decode("ascii") for run in _RUN.findall(content))
        yield from self._terms_in(runs, name)

    def _in_text(self, text: str, name: str) -> Iterator[Hit]:
        text = _plain(text)
        yield from self._terms_in(text, name)
        for found in dict.fromkeys(_PATH.findall(text)):
            yield Hit(name, "an absolute path", found)
        for found in dict.fromkeys(_DATE.findall(text)):
            if found != self.date:
                yield Hit(name, "a date", found)
        numbers = {round(float(number), 3) for number in _NUMBER.findall(text)}
        for origin in self.identities.origins:
            if numbers.issuperset(origin):
                yield Hit(name, "the origin of a real volume's affine", str(origin))

    def _terms_in(self, text: str, name: str) -> Iterator[Hit]:
        folded = _plain(text).casefold()
        for term, kind in self.identities.terms.items():
            plain = _plain(term).casefold()
            if plain in folded and re.search(rf"(?<![^\W_]){re.escape(plain)}(?![^\W_])", folded):
                yield Hit(name, kind, term)

    def _in_nifti(self, content: bytes, name: str) -> Iterator[Hit]:
        try:
            image = nib.Nifti1Image.from_bytes(content)
            expected = volume_bytes(np.asanyarray(image.dataobj), self.affine, self.description)
        except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, ValueError, OSError) as error:
            yield Hit(name, "not NIfTI", str(error))
            return
        size = NIFTI_HEADER.itemsize
        own, ours = (np.frombuffer(header[:size], NIFTI_HEADER)[0] for header in (content, expected))
        for field in NIFTI_HEADER.names or ():
            if own[field].tobytes() != ours[field].tobytes():
                yield Hit(name, f"the NIfTI header's {field}", str(own[field]))
        if content[size:] != expected[size:]:
            yield Hit(
                name, "a NIfTI extension or bytes behind the voxels", f"{len(content)} bytes, not {len(expected)}"
            )


def _plain(text: str) -> str:
    """One form of what looks alike."""
    return unicodedata.normalize("NFKC", text)
