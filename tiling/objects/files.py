"""An object opened for reading, of which only those parts are fetched that are read."""

import io

from tiling.jobs.errors import SlideError
from tiling.objects.folder import ObjectFolder

BLOCK_BYTES = 1 << 16


class ObjectFile(io.RawIOBase):
    """Seekable; its first and its last block are fetched when it is opened. Raises SlideError where it is absent."""

    def __init__(self, folder: ObjectFolder, name: str) -> None:
        super().__init__()
        first = folder.read(name, BLOCK_BYTES)
        if first is None:
            raise SlideError(f"{folder.shown(name)}: no such file")
        self._folder, self._name, self._place = folder, name, 0
        self.size, self.version = first[1].size, first[1].version
        self._blocks = {0: first[0]}
        self._block(max(0, self.size - 1) // BLOCK_BYTES)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = offset + (0, self._place, self.size)[whence]
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = min(len(buffer), max(0, self.size - self._place))
        done = 0
        while done < wanted:
            number, start = divmod(self._place, BLOCK_BYTES)
            part = self._block(number)[start : start + wanted - done]
            buffer[done : done + len(part)] = part
            done += len(part)
            self._place += len(part)
        return done

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = number * BLOCK_BYTES
            length = min(BLOCK_BYTES, self.size - start)
            self._blocks[number] = self._folder.read_part(self._name, start, length)
        return self._blocks[number]
