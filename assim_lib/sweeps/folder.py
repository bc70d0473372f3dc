"""Where a sweep keeps its files: a local folder, or any address that fsspec knows (``s3://bucket/folder``).

What stands under its name is complete: a local file is renamed when it is, an object store shows an object when it is.
"""

import json
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from assim_lib.storage import json_bytes, write_bytes


class Folder:
    """Files below an address.

    Args:
        url: path or address; fsspec's own settings hold, such as ``AWS_ENDPOINT_URL`` for another S3.

    Raises:
        OSError: if no such kind of address is known, or its package is not installed.
    """

    def __init__(self, url: str):
        try:
            self.fs, self.root = url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise OSError(f"output = {url!r} is no folder or address that can be used: {error}") from None
        self.url = self.fs.unstrip_protocol(self.root)
        self.local = isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """The path of a file, or its whole address."""
        return f"{self.root if self.local else self.url}/{name}"

    def write(self, name: str, content: bytes) -> str:
        """Write a file, atomically; return its path."""
        if self.local:
            write_bytes(Path(self.root) / name, content)
        else:
            self.fs.pipe_file(f"{self.root}/{name}", content)
        return self.path(name)

    def write_json(self, name: str, content: Any) -> str:
        """Write ``content`` as JSON, atomically; return its path."""
        return self.write(name, json_bytes(content))

    def read_json(self, name: str) -> Any:
        """What a JSON file holds."""
        return json.loads(self.fs.cat_file(f"{self.root}/{name}"))

    def stems(self, below: str, ending: str) -> set[str]:
        """Names, without their ending, of the files with it in a folder below; none if there is no such folder."""
        self.fs.invalidate_cache()  # other machines write here
        found = self.fs.glob(f"{escape(self.root)}/{below}/*{ending}")
        return {Path(str(path)).name.removesuffix(ending) for path in found}

    def remove(self, name: str) -> None:
        """Remove a file that may not be there."""
        with suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.root}/{name}")
