"""Private pictures: in a bucket of their own, handed out under addresses that expire.

A key marked private draws them. Their names start with `private/`, which is all that tells them
from public ones; the rest of the code gives a name and gets the right store.
"""

from dataclasses import dataclass

from images.stores.contract import ImageStore

PREFIX = "private/"


@dataclass(frozen=True, slots=True)
class PublicAndPrivate:
    """Two stores as one ImageStore, chosen by the name."""

    public: ImageStore
    private: ImageStore

    def _of(self, name: str | None) -> ImageStore:
        return self.private if name and name.startswith(PREFIX) else self.public

    async def asave(
        self, name: str, data: bytes, content_type: str, deadline: float | None = None
    ) -> str:
        """See ImageStore."""
        return await self._of(name).asave(name, data, content_type, deadline)

    async def aread(self, name: str) -> bytes:
        """See ImageStore."""
        return await self._of(name).aread(name)

    async def adelete(self, name: str) -> None:
        """See ImageStore."""
        await self._of(name).adelete(name)

    async def alink(self, name: str) -> str:
        """See ImageStore."""
        return await self._of(name).alink(name)

    async def probe(self) -> None:
        """Return when the public store can be used: most pictures go there."""
        await self.public.probe()

    async def aclose(self) -> None:
        """Close both."""
        await self.public.aclose()
        await self.private.aclose()
