"""WARC files whose records are text, such as the WET files of Common Crawl; HTML is not taken apart.

May enter: which records are documents.
"""

from __future__ import annotations

from collections.abc import Iterator

from chronomask.errors import UsageError
from chronomask.prepare.read.files import Skipped, SourceFile, opened
from chronomask.prepare.read.readers import Fields, as_metadata, decoded
from chronomask.storage import damage_errors
from chronomask.types import Document

__all__ = ["read_warc"]

_TEXT_RECORDS = ("conversion", "resource")
_OF_NO_DOCUMENT = ("warcinfo", "request", "metadata", "revisit")


def read_warc(source: SourceFile, fields: Fields, skipped: Skipped) -> Iterator[Document]:
    """One record of plain text a document, its id the address it came from.

    Metadata that can be kept: ``url``, ``date``, ``language``. Raises :class:`UsageError` without the
    package warcio.
    """
    try:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError:
        raise UsageError(
            f"{source.path} needs the package warcio; pip install 'chronomask[warc]'"
        ) from None
    number = -1
    with opened(source) as handle:
        try:
            for record in ArchiveIterator(handle, no_record_parse=True):
                if record.rec_type in _OF_NO_DOCUMENT:
                    continue
                number += 1
                name = f"{source.path}:{number}"
                headers = record.rec_headers
                content = str(headers.get_header("Content-Type") or "").partition(";")[0].strip()
                if record.rec_type not in _TEXT_RECORDS or content != "text/plain":
                    skipped.add("WARC record that is not text", name)
                    continue
                data = record.content_stream().read(fields.max_bytes + 1)
                if len(data) > fields.max_bytes:
                    skipped.add(fields.too_long, name)
                    continue
                known = {
                    "url": headers.get_header("WARC-Target-URI"),
                    "date": headers.get_header("WARC-Date"),
                    "language": headers.get_header("WARC-Identified-Content-Language"),
                }
                metadata = as_metadata(known, fields)
                yield from decoded(data, name, skipped, known["url"], metadata)
        except damage_errors() as error:
            skipped.add("corrupt compressed data: rest of file", f"{source.path} ({error})")
        except ArchiveLoadFailed as error:
            skipped.add("not a WARC record: rest of file", f"{source.path} ({error})")
